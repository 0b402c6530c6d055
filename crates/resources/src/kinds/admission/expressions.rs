//! The variables that expressions of policies and webhooks see, and what such an expression must evaluate to.
//!
//! Upstream: apiserver/pkg/admission/plugin/cel/compile.go, composition.go

use cel::{CompileErrors, Env, Program, Type};

/// What an expression may use beside the objects and the request.
#[derive(Clone, Copy, Debug, Default)]
pub struct Scope {
    pub params: bool,
    pub authorizer: bool,
    /// `Object{…}` and `JSONPatch{…}`.
    pub patches: bool,
}

/// An expression that compiles and evaluates to the right type, or why it does not.
pub type Compiled = Result<Program, String>;

/// Compiles expressions. Variables are added one by one and are seen by what is compiled after them.
#[derive(Clone, Debug)]
pub struct Compiler {
    /// The type of the objects; any, unless an expression is checked for one kind.
    object: Type,
    variables: Option<Vec<(String, Type)>>,
}

impl Compiler {
    /// For webhooks, which have no variables.
    pub fn plain() -> Self {
        Compiler { object: Type::Dyn, variables: None }
    }

    /// For policies.
    pub fn composited() -> Self {
        Compiler { object: Type::Dyn, variables: Some(Vec::new()) }
    }

    /// For policies, about objects of one kind.
    pub fn typed(object: Type) -> Self {
        Compiler { object, variables: Some(Vec::new()) }
    }

    /// Everything wrong with an expression, whatever it evaluates to.
    pub fn check(&self, expression: &str, scope: Scope) -> Result<(), CompileErrors> {
        self.env(scope).compile(expression).map(|_| ())
    }

    fn env(&self, scope: Scope) -> Env {
        let mut env = Env::kubernetes()
            .variable("object", self.object.clone())
            .variable("oldObject", self.object.clone())
            .variable("namespaceObject", namespace())
            .variable("request", request());
        if scope.params {
            env = env.variable("params", Type::Dyn);
        }
        if scope.authorizer {
            env = env
                .variable("authorizer", Type::authorizer())
                .variable("authorizer.requestResource", Type::resource_check());
        }
        if let Some(variables) = &self.variables {
            let fields = variables.iter().map(|(name, ty)| (name.as_str(), ty.clone()));
            env = env.variable("variables", Type::object("kubernetes.variables", fields));
        }
        if scope.patches { env.patch_types() } else { env }
    }

    /// Compiles a variable, which those after it see. One that is wrong is seen as of any type.
    pub fn variable(&mut self, name: &str, expression: &str, scope: Scope) -> Compiled {
        let compiled = self.compile(expression, scope, &[]);
        let ty = compiled.as_ref().map_or(Type::Dyn, |program| declared(program.result_type()));
        if let Some(variables) = &mut self.variables {
            variables.push((name.to_owned(), ty));
        }
        compiled
    }

    /// Compiles an expression that evaluates to one of these types; to any, when none is named.
    pub fn compile(&self, expression: &str, scope: Scope, types: &[Type]) -> Compiled {
        let program =
            self.env(scope).compile(expression).map_err(|errors| format!("compilation failed: {errors}"))?;
        let got = program.result_type();
        if types.is_empty() || types.contains(got) {
            return Ok(program);
        }
        let names: Vec<String> = types.iter().map(type_name).collect();
        Err(match names.as_slice() {
            [one] => format!("must evaluate to {one} but got {}", type_name(got)),
            many => format!("must evaluate to one of [{}] but got {}", many.join(" "), type_name(got)),
        })
    }
}

/// The type as upstream's types name themselves.
fn type_name(ty: &Type) -> String {
    match ty {
        Type::Null => "null_type".to_owned(),
        Type::Duration => "google.protobuf.Duration".to_owned(),
        Type::Timestamp => "google.protobuf.Timestamp".to_owned(),
        other => other.to_string(),
    }
}

/// The type of a variable as others see it: what is no plain value, list or map is of any type.
fn declared(ty: &Type) -> Type {
    match ty {
        Type::List(items) => Type::list(declared(items)),
        Type::Map(entry) => Type::map(declared(&entry.0), declared(&entry.1)),
        Type::Object(_) | Type::Opaque(..) | Type::Type(_) | Type::Param(_) | Type::Error => Type::Dyn,
        plain => plain.clone(),
    }
}

fn request() -> Type {
    let kind = ["group", "version", "kind"].map(|name| (name, Type::String));
    let kind = Type::object("kubernetes.GroupVersionKind", kind);
    let resource = ["group", "version", "resource"].map(|name| (name, Type::String));
    let resource = Type::object("kubernetes.GroupVersionResource", resource);
    let texts = || Type::list(Type::String);
    let user = Type::object(
        "kubernetes.UserInfo",
        [
            ("username", Type::String),
            ("uid", Type::String),
            ("groups", texts()),
            ("extra", Type::map(Type::String, texts())),
        ],
    );
    Type::object(
        "kubernetes.AdmissionRequest",
        [
            ("kind", kind.clone()),
            ("resource", resource.clone()),
            ("subResource", Type::String),
            ("requestKind", kind),
            ("requestResource", resource),
            ("requestSubResource", Type::String),
            ("name", Type::String),
            ("namespace", Type::String),
            ("operation", Type::String),
            ("userInfo", user),
            ("dryRun", Type::Bool),
            ("options", Type::Dyn),
        ],
    )
}

fn namespace() -> Type {
    let texts = || Type::map(Type::String, Type::String);
    let condition = Type::object(
        "kubernetes.NamespaceCondition",
        [
            ("status", Type::String),
            ("type", Type::String),
            ("lastTransitionTime", Type::Timestamp),
            ("message", Type::String),
            ("reason", Type::String),
        ],
    );
    let metadata = Type::object(
        "kubernetes.NamespaceMetadata",
        [
            ("name", Type::String),
            ("generateName", Type::String),
            ("namespace", Type::String),
            ("labels", texts()),
            ("annotations", texts()),
            ("UID", Type::String),
            ("creationTimestamp", Type::Timestamp),
            ("deletionGracePeriodSeconds", Type::Int),
            ("deletionTimestamp", Type::Timestamp),
            ("generation", Type::Int),
            ("resourceVersion", Type::String),
            ("finalizers", Type::list(Type::String)),
        ],
    );
    let spec = Type::object("kubernetes.NamespaceSpec", [("finalizers", Type::list(Type::String))]);
    let status = Type::object(
        "kubernetes.NamespaceStatus",
        [("conditions", Type::list(condition)), ("phase", Type::String)],
    );
    Type::object("kubernetes.Namespace", [("metadata", metadata), ("spec", spec), ("status", status)])
}
