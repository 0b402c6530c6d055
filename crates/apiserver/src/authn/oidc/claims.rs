//! What the claims of a proven token make of its user.
//!
//! Upstream: apiserver/plugin/pkg/authenticator/token/oidc/oidc.go AuthenticateToken

use std::collections::BTreeMap;

use cel::{Env, PER_CALL_LIMIT, Program, Type, Value as CelValue};
use serde_json::{Value, json};

use super::config::{Jwt, Mapping};
use crate::seams::UserInfo;

/// The mappings and rules of an issuer, with their expressions compiled.
pub struct Mapper {
    username: Source,
    groups: Source,
    uid: Source,
    extra: Vec<(String, Program)>,
    required: Vec<(String, String)>,
    claim_rules: Vec<Rule>,
    user_rules: Vec<Rule>,
}

/// Where a value comes from.
enum Source {
    Nothing,
    Claim { name: String, prefix: String },
    Expression(Program),
}

struct Rule {
    program: Program,
    text: String,
    message: String,
}

impl Mapper {
    /// Compiles the expressions; all that is wrong with them.
    pub fn new(jwt: &Jwt, path: &str) -> Result<Self, Vec<String>> {
        let mut errors = Vec::new();
        let mut compile = |at: String, variable: &str, text: &str| {
            let environment = Env::kubernetes().variable(variable, Type::Dyn);
            let compiled = environment.compile(text);
            compiled
                .map_err(|why| {
                    errors.push(format!("{at}: Invalid value: {text:?}: compilation failed: {why}"))
                })
                .ok()
        };
        let mut source_of = |name: &str, mapping: &Mapping| {
            if !mapping.claim.is_empty() {
                let prefix = mapping.prefix.clone().unwrap_or_default();
                return Some(Source::Claim { name: mapping.claim.clone(), prefix });
            }
            if mapping.expression.is_empty() {
                return Some(Source::Nothing);
            }
            let at = format!("{path}.claimMappings.{name}.expression");
            compile(at, "claims", &mapping.expression).map(Source::Expression)
        };
        let mappings = &jwt.claim_mappings;
        let username = source_of("username", &mappings.username);
        let groups = source_of("groups", &mappings.groups);
        let uid = source_of("uid", &mappings.uid);
        let mut extra = Vec::new();
        for (index, entry) in mappings.extra.iter().enumerate() {
            let at = format!("{path}.claimMappings.extra[{index}].valueExpression");
            extra.extend(compile(at, "claims", &entry.value_expression).map(|p| (entry.key.clone(), p)));
        }
        let (mut required, mut claim_rules, mut user_rules) = (Vec::new(), Vec::new(), Vec::new());
        for (index, rule) in jwt.claim_validation_rules.iter().enumerate() {
            if !rule.claim.is_empty() {
                required.push((rule.claim.clone(), rule.required_value.clone()));
                continue;
            }
            let at = format!("{path}.claimValidationRules[{index}].expression");
            let program = compile(at, "claims", &rule.expression);
            claim_rules.extend(program.map(|program| Rule::new(program, &rule.expression, &rule.message)));
        }
        for (index, rule) in jwt.user_validation_rules.iter().enumerate() {
            let at = format!("{path}.userValidationRules[{index}].expression");
            let program = compile(at, "user", &rule.expression);
            user_rules.extend(program.map(|program| Rule::new(program, &rule.expression, &rule.message)));
        }
        let (Some(username), Some(groups), Some(uid), true) = (username, groups, uid, errors.is_empty())
        else {
            return Err(errors);
        };
        Ok(Mapper { username, groups, uid, extra, required, claim_rules, user_rules })
    }

    /// The user that the claims describe.
    pub fn user(&self, claims: &Value) -> Result<UserInfo, String> {
        let name = self.username(claims)?;
        let groups = match &self.groups {
            Source::Nothing => Vec::new(),
            Source::Claim { name, prefix } => {
                let found = claims.get(name).map_or(Ok(Vec::new()), strings);
                let found = found.map_err(|why| format!("oidc: parse groups claim {name:?}: {why}"))?;
                found.into_iter().map(|group| format!("{prefix}{group}")).collect()
            }
            Source::Expression(program) => evaluate(program, "claims", claims)
                .and_then(|value| strings(&value))
                .map_err(|why| format!("oidc: error evaluating group claim expression: {why}"))?,
        };
        let uid = match &self.uid {
            Source::Nothing => String::new(),
            Source::Claim { name, .. } => {
                text(claims, name).map_err(|why| format!("oidc: parse uid claim: {why}"))?
            }
            Source::Expression(program) => evaluate(program, "claims", claims)
                .and_then(|value| {
                    value
                        .as_str()
                        .map(str::to_owned)
                        .ok_or("uid claim expression must return a string".into())
                })
                .map_err(|why| format!("oidc: error evaluating uid claim expression: {why}"))?,
        };
        let mut extra = BTreeMap::new();
        for (key, program) in &self.extra {
            let values = evaluate(program, "claims", claims).and_then(|value| strings(&value));
            let values =
                values.map_err(|why| format!("oidc: error evaluating extra claim expression: {why}"))?;
            if !values.is_empty() {
                extra.insert(key.clone(), values);
            }
        }
        let user = UserInfo { name, uid, groups, extra };
        self.check(claims, &user)?;
        Ok(user)
    }

    fn username(&self, claims: &Value) -> Result<String, String> {
        match &self.username {
            Source::Nothing => Err("oidc: no username is configured".to_owned()),
            Source::Claim { name, prefix } => {
                let found = text(claims, name);
                let found = found.map_err(|why| format!("oidc: parse username claims {name:?}: {why}"))?;
                if name == "email" && claims.get("email_verified").is_some_and(|verified| verified != true) {
                    return Err("oidc: email not verified".to_owned());
                }
                Ok(format!("{prefix}{found}"))
            }
            Source::Expression(program) => {
                let value = evaluate(program, "claims", claims)
                    .map_err(|why| format!("oidc: error evaluating username claim expression: {why}"))?;
                match value.as_str() {
                    None => Err(
                        "oidc: error evaluating username claim expression: username claim expression must \
                                 return a string"
                            .to_owned(),
                    ),
                    Some("") => Err("oidc: empty username via CEL expression is not allowed".to_owned()),
                    Some(name) => Ok(name.to_owned()),
                }
            }
        }
    }

    fn check(&self, claims: &Value, user: &UserInfo) -> Result<(), String> {
        for (claim, wanted) in &self.required {
            let Some(found) = claims.get(claim) else {
                return Err(format!("oidc: required claim {claim} not present in ID token"));
            };
            match found.as_str() {
                Some(found) if found == wanted => {}
                Some(found) => {
                    return Err(format!(
                        "oidc: required claim {claim} value does not match. Got = {found}, want = {wanted}"
                    ));
                }
                None => return Err(format!("oidc: parse claim {claim}: it is not a string")),
            }
        }
        for rule in &self.claim_rules {
            rule.check("claims", claims)
                .map_err(|why| format!("oidc: error evaluating claim validation expression: {why}"))?;
        }
        let shown =
            json!({"username": user.name, "uid": user.uid, "groups": user.groups, "extra": user.extra});
        for rule in &self.user_rules {
            rule.check("user", &shown)
                .map_err(|why| format!("oidc: error evaluating user info validation rule: {why}"))?;
        }
        Ok(())
    }
}

impl Rule {
    fn new(program: Program, text: &str, message: &str) -> Self {
        Rule { program, text: text.to_owned(), message: message.to_owned() }
    }

    fn check(&self, variable: &str, value: &Value) -> Result<(), String> {
        let told = match self.message.as_str() {
            "" => "validation failed",
            message => message,
        };
        match evaluate(&self.program, variable, value)?.as_bool() {
            Some(true) => Ok(()),
            _ => Err(format!("validation expression '{}' failed: {told}", self.text)),
        }
    }
}

fn evaluate(program: &Program, variable: &str, value: &Value) -> Result<Value, String> {
    let evaluation = program.eval(&[(variable, CelValue::json(value))], PER_CALL_LIMIT);
    let result = evaluation.result.map_err(|error| error.to_string())?;
    result.to_json().map_err(|error| error.to_string())
}

fn text(claims: &Value, name: &str) -> Result<String, String> {
    let claim = claims.get(name).ok_or("claim not present")?;
    claim.as_str().map(str::to_owned).ok_or_else(|| "it is not a string".to_owned())
}

/// One string, or a list of them.
fn strings(value: &Value) -> Result<Vec<String>, String> {
    match value {
        Value::Null => Ok(Vec::new()),
        Value::String(one) if one.is_empty() => Ok(Vec::new()),
        Value::String(one) => Ok(vec![one.clone()]),
        Value::Array(many) => {
            let texts = many.iter().map(|item| item.as_str().map(str::to_owned));
            texts.collect::<Option<_>>().ok_or_else(|| "it is not a list of strings".to_owned())
        }
        _ => Err("it is neither a string nor a list of strings".to_owned()),
    }
}
