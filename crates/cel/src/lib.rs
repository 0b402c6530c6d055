//! The Common Expression Language as Kubernetes v1.36 speaks it, pure: no I/O, no async, no clock, no randomness.
//!
//! An [`Env`] declares variables; [`Env::compile`] parses and type checks an expression into a [`Program`], with
//! errors in cel-go's words and carets; [`Program::estimated_cost`] says what it may cost at most given the sizes
//! that a [`DeclType`] (a schema as CEL sees it) declares; [`Program::eval`] runs it over [`Value`]s that read
//! JSON where it lies, counts what that costs, and stops at a limit.
//!
//! ```
//! let object = serde_json::json!({"spec": {"replicas": 3}});
//! let program = cel::Env::kubernetes().variable("object", cel::Type::Dyn).compile("object.spec.replicas <= 5")?;
//! let evaluation = program.eval(&[("object", cel::Value::json(&object))], cel::PER_CALL_LIMIT);
//! assert_eq!(evaluation.result, Ok(cel::Value::Bool(true)));
//! # Ok::<(), cel::CompileErrors>(())
//! ```
//!
//! For a rule of a CustomResourceDefinition: [`DeclType::from_schema`] for the schema that the rule stands on,
//! `.named("selfType")`, declare `self` (and `oldSelf`, of [`Type::optional`] when the rule has
//! `optionalOldSelf`) as its [`DeclType::cel_type`], and bind [`Value::typed`]. [`Program::uses_variable`] tells a
//! transition rule.
//!
//! What always holds: nothing an expression does is unbounded. The text has a length and a depth that is
//! refused beyond, evaluation has a cost limit, regular expressions have a size.
//!
//! Deliberately absent: protobuf messages, extensions that Kubernetes does not enable (`math`, `cel.bind`,
//! encoders), unknowns and partial evaluation.
//!
//! Upstream: github.com/google/cel-go, staging/src/k8s.io/apiserver/pkg/cel

mod ast;
mod check;
mod cost;
mod decl;
mod env;
mod error;
mod escaping;
mod eval;
mod library;
mod parse;
mod types;
mod value;

pub use decl::{DeclField, DeclKind, DeclType, ListKind, maximum_cardinality};
pub use env::{CostEstimate, Env, Evaluation, Program};
pub use error::{CompileErrors, EvalError};
pub use escaping::{escape, unescape};
pub use library::authorizer::{Authorize, AuthorizerCheck, AuthorizerDecision};
pub use types::{ObjectType, Type};
pub use value::{Dynamic, Key, List, Map, ObjectValue, Value};

/// What one evaluation may cost, at most.
///
/// Upstream: apiserver/pkg/apis/cel/config.go PerCallLimit
pub const PER_CALL_LIMIT: u64 = 1_000_000;
/// What all evaluations for one policy binding, or one custom resource, may cost together.
///
/// Upstream: apiserver/pkg/apis/cel/config.go RuntimeCELCostBudget
pub const RUNTIME_COST_BUDGET: u64 = 10_000_000;
/// What all match conditions of one webhook or policy may cost together.
///
/// Upstream: apiserver/pkg/apis/cel/config.go RuntimeCELCostBudgetMatchConditions
pub const MATCH_CONDITIONS_COST_BUDGET: u64 = 2_500_000;
/// The largest text that a message expression may make.
///
/// Upstream: apiserver/pkg/apis/cel/config.go MaxEvaluatedMessageExpressionSizeBytes
pub const MAX_MESSAGE_BYTES: usize = 5 * 1024;
