//! Label and field selectors: which objects a query or a workload means.
//!
//! Upstream: apimachinery/pkg/labels/selector.go, apimachinery/pkg/fields/selector.go

use std::collections::BTreeMap;
use std::fmt;

use serde_json::Value;

use crate::field::{Error, Path, aggregate};
use crate::names;

/// How a requirement relates a key and values.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    Equals,
    DoubleEquals,
    NotEquals,
    In,
    NotIn,
    Exists,
    DoesNotExist,
    GreaterThan,
    LessThan,
}

/// One condition on one label. Values are sorted and without duplicates.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    key: String,
    operator: Operator,
    values: Vec<String>,
}

impl Requirement {
    pub fn key(&self) -> &str {
        &self.key
    }

    pub fn operator(&self) -> Operator {
        self.operator
    }

    pub fn values(&self) -> &[String] {
        &self.values
    }

    /// A requirement, or why there is no such one, in upstream's words.
    pub fn new(key: &str, operator: Operator, mut values: Vec<String>) -> Result<Self, String> {
        values.sort();
        values.dedup();
        let mut errors = Vec::new();
        let path = Path::new("values");
        let key_errors = names::qualified_name(key);
        if !key_errors.is_empty() {
            errors.push(Error::invalid(&Path::new("key"), key, key_errors.join("; ")));
        }
        let wrong_count = match operator {
            Operator::In | Operator::NotIn if values.is_empty() => {
                Some("for 'in', 'notin' operators, values set can't be empty")
            }
            Operator::Equals | Operator::DoubleEquals | Operator::NotEquals if values.len() != 1 => {
                Some("exact-match compatibility requires one single value")
            }
            Operator::Exists | Operator::DoesNotExist if !values.is_empty() => {
                Some("values set must be empty for exists and does not exist")
            }
            Operator::GreaterThan | Operator::LessThan if values.len() != 1 => {
                Some("for 'Gt', 'Lt' operators, exactly one value is required")
            }
            _ => None,
        };
        if let Some(detail) = wrong_count {
            errors.push(Error::invalid(&path, values.clone(), detail));
        }
        for (index, value) in values.iter().enumerate() {
            if matches!(operator, Operator::GreaterThan | Operator::LessThan) && value.parse::<i64>().is_err()
            {
                let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
                errors.push(Error::invalid(&path.index(index), value.as_str(), detail));
            }
        }
        for (index, value) in values.iter().enumerate() {
            let value_errors = names::label_value(value);
            if !value_errors.is_empty() {
                let path = path.index(index).key(key);
                errors.push(Error::invalid(&path, value.as_str(), value_errors.join("; ")));
            }
        }
        if errors.is_empty() {
            Ok(Requirement { key: key.to_owned(), operator, values })
        } else {
            Err(aggregate(&errors))
        }
    }

    fn matches(&self, value: Option<&str>) -> bool {
        let has = |value: &str| self.values.iter().any(|v| v == value);
        let number = |text: &str| text.parse::<i64>().ok();
        match self.operator {
            Operator::Equals | Operator::DoubleEquals | Operator::In => value.is_some_and(has),
            Operator::NotEquals | Operator::NotIn => !value.is_some_and(has),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::GreaterThan | Operator::LessThan => {
                match (value.and_then(number), self.values.first().and_then(|v| number(v))) {
                    (Some(value), Some(bound)) if self.operator == Operator::GreaterThan => value > bound,
                    (Some(value), Some(bound)) => value < bound,
                    _ => false,
                }
            }
        }
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let key = &self.key;
        let values = self.values.join(",");
        match self.operator {
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Exists => write!(f, "{key}"),
            Operator::DoesNotExist => write!(f, "!{key}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
        }
    }
}

/// Which labels are meant: all requirements must match. Without any it matches everything.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    /// Set by an absent `LabelSelector` object.
    nothing: bool,
}

impl LabelSelector {
    pub fn everything() -> Self {
        LabelSelector::default()
    }

    pub fn nothing() -> Self {
        LabelSelector { requirements: Vec::new(), nothing: true }
    }

    /// Reads the form of queries: `app=web,tier in (a,b),!debug`.
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut parser = Parser { tokens: lex(text), position: 0 };
        Ok(Self::sorted(parser.selector()?))
    }

    /// Reads a `LabelSelector` object (`matchLabels`, `matchExpressions`). As upstream has it, an absent one
    /// selects nothing and an empty one everything.
    pub fn from_object(object: &Value) -> Result<Self, String> {
        if object.is_null() {
            return Ok(Self::nothing());
        }
        let mut requirements = Vec::new();
        for (key, value) in object.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key, Operator::Equals, vec![value])?);
        }
        for expression in object.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => return Err(format!("{other:?} is not a valid label selector operator")),
            };
            let values = expression.get("values").and_then(Value::as_array).into_iter().flatten();
            let values = values.filter_map(Value::as_str).map(str::to_owned).collect();
            requirements.push(Requirement::new(text("key"), operator, values)?);
        }
        Ok(Self::sorted(requirements))
    }

    /// All of these labels, with these values, unchecked: a Service's or ReplicationController's selector.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let equals = |(key, value): (&str, &str)| Requirement {
            key: key.to_owned(),
            operator: Operator::Equals,
            values: vec![value.to_owned()],
        };
        Self::sorted(labels.into_iter().map(equals).collect())
    }

    fn sorted(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector { requirements, nothing: false }
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Whether it restricts nothing.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    /// Whether it is the selector of nothing at all.
    pub fn is_nothing(&self) -> bool {
        self.nothing
    }

    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.matches(lookup(&r.key)))
    }

    pub fn matches_map(&self, labels: &BTreeMap<String, String>) -> bool {
        self.matches(|key| labels.get(key).map(String::as_str))
    }

    /// Matches the labels of an object tree (`metadata.labels`).
    pub fn matches_object(&self, object: &Value) -> bool {
        let labels = object.get("metadata").and_then(|m| m.get("labels"));
        self.matches(|key| labels.and_then(|l| l.get(key)).and_then(Value::as_str))
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, requirement) in self.requirements.iter().enumerate() {
            if index > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    End,
    Identifier(String),
    Symbol(&'static str),
    Bad(String),
}

impl Token {
    fn literal(&self) -> String {
        match self {
            Token::End => String::new(),
            Token::Identifier(text) => text.clone(),
            Token::Symbol(symbol) => (*symbol).to_owned(),
            Token::Bad(text) => format!("error expected: keyword found '{text}'"),
        }
    }

    /// Where values stand, `in` and `notin` are words as any other.
    fn as_value(&self) -> Token {
        match self {
            Token::Symbol(word @ ("in" | "notin")) => Token::Identifier((*word).to_owned()),
            other => other.clone(),
        }
    }
}

fn lex(text: &str) -> Vec<Token> {
    const SYMBOLS: &[&str] = &["==", "!=", "=", "!", ")", "(", ",", ">", "<"];
    let special = |c: char| "=!(),><".contains(c);
    let space = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    let mut tokens = Vec::new();
    let mut rest = text.trim_start_matches(space);
    while let Some(first) = rest.chars().next() {
        if special(first) {
            match SYMBOLS.iter().find(|s| rest.starts_with(**s)) {
                Some(symbol) => {
                    tokens.push(Token::Symbol(symbol));
                    rest = &rest[symbol.len()..];
                }
                None => {
                    tokens.push(Token::Bad(first.to_string()));
                    rest = &rest[first.len_utf8()..];
                }
            }
        } else {
            let end = rest.find(|c| special(c) || space(c)).unwrap_or(rest.len());
            tokens.push(match &rest[..end] {
                "in" => Token::Symbol("in"),
                "notin" => Token::Symbol("notin"),
                word => Token::Identifier(word.to_owned()),
            });
            rest = &rest[end..];
        }
        rest = rest.trim_start_matches(space);
    }
    tokens.push(Token::End);
    tokens
}

struct Parser {
    tokens: Vec<Token>,
    position: usize,
}

impl Parser {
    fn peek(&self) -> Token {
        self.tokens.get(self.position).map_or(Token::End, Token::as_value)
    }

    fn next(&mut self) -> Token {
        let token = self.peek();
        self.position += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                Token::Identifier(_) | Token::Symbol("!") => {
                    let requirement =
                        self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
                    requirements.push(requirement);
                    match self.next() {
                        Token::End => return Ok(requirements),
                        Token::Symbol(",") => {
                            let next = self.peek();
                            if !matches!(next, Token::Identifier(_) | Token::Symbol("!")) {
                                let found = next.literal();
                                return Err(format!("found '{found}', expected: identifier after ','"));
                            }
                        }
                        other => {
                            return Err(format!(
                                "found '{}', expected: ',' or 'end of string'",
                                other.literal()
                            ));
                        }
                    }
                }
                Token::End => return Ok(requirements),
                other => {
                    let found = other.literal();
                    return Err(format!("found '{found}', expected: !, identifier, or 'end of string'"));
                }
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let mut token = self.next();
        let negated = token == Token::Symbol("!");
        if negated {
            token = self.next();
        }
        let Token::Identifier(key) = token else {
            return Err(format!("found '{}', expected: identifier", token.literal()));
        };
        let errors = names::qualified_name(&key);
        if !errors.is_empty() {
            return Err(Error::invalid(&Path::root(), key, errors.join("; ")).to_string());
        }
        if negated {
            return Requirement::new(&key, Operator::DoesNotExist, Vec::new());
        }
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Requirement::new(&key, Operator::Exists, Vec::new());
        }
        let operator = self.operator()?;
        let values = match operator {
            Operator::In | Operator::NotIn => self.values()?,
            _ => vec![self.exact_value()?],
        };
        Requirement::new(&key, operator, values)
    }

    fn operator(&mut self) -> Result<Operator, String> {
        let token = self.tokens.get(self.position).cloned().unwrap_or(Token::End);
        self.position += 1;
        Ok(match token {
            Token::Symbol("in") => Operator::In,
            Token::Symbol("notin") => Operator::NotIn,
            Token::Symbol("=") => Operator::Equals,
            Token::Symbol("==") => Operator::DoubleEquals,
            Token::Symbol("!=") => Operator::NotEquals,
            Token::Symbol(">") => Operator::GreaterThan,
            Token::Symbol("<") => Operator::LessThan,
            other => {
                return Err(format!("found '{}', expected: in, notin, =, ==, !=, gt, lt", other.literal()));
            }
        })
    }

    /// A parenthesised list, where nothing between commas is the empty value.
    fn values(&mut self) -> Result<Vec<String>, String> {
        let open = self.next();
        if open != Token::Symbol("(") {
            return Err(format!("found '{}' expected: '('", open.literal()));
        }
        let mut values = Vec::new();
        let mut expect_value = true;
        loop {
            match self.next() {
                Token::Identifier(word) if expect_value => {
                    values.push(word);
                    expect_value = false;
                }
                Token::Symbol(",") => {
                    if expect_value {
                        values.push(String::new());
                    }
                    expect_value = true;
                }
                Token::Symbol(")") => {
                    if expect_value {
                        values.push(String::new());
                    }
                    return Ok(values);
                }
                other if expect_value && values.is_empty() => {
                    return Err(format!("found '{}', expected: ',', ')' or identifier", other.literal()));
                }
                other if expect_value => {
                    return Err(format!("found '{}', expected: ',', or identifier", other.literal()));
                }
                other => return Err(format!("found '{}', expected: ',' or ')'", other.literal())),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.peek(), Token::End | Token::Symbol(",")) {
            return Ok(String::new());
        }
        match self.next() {
            Token::Identifier(word) => Ok(word),
            other => Err(format!("found '{}', expected: identifier", other.literal())),
        }
    }
}

/// How a field selector compares.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FieldOperator {
    Equals,
    NotEquals,
}

/// One condition on one field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    pub field: String,
    pub operator: FieldOperator,
    pub value: String,
}

/// Which field values are meant: `status.phase=Running,spec.nodeName!=n1`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    pub requirements: Vec<FieldRequirement>,
}

impl FieldSelector {
    pub fn parse(text: &str) -> Result<Self, String> {
        let mut terms = split_terms(text);
        terms.sort_unstable();
        let mut requirements = Vec::new();
        for term in terms.into_iter().filter(|t| !t.is_empty()) {
            let Some((field, operator, value)) = split_term(term) else {
                return Err(format!("invalid selector: '{text}'; can't understand '{term}'"));
            };
            requirements.push(FieldRequirement {
                field: field.to_owned(),
                operator,
                value: unescape(value)?,
            });
        }
        Ok(FieldSelector { requirements })
    }

    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty()
    }

    /// Whether all requirements match, where `lookup` answers the empty text for unset fields.
    pub fn matches(&self, lookup: impl Fn(&str) -> String) -> bool {
        self.requirements
            .iter()
            .all(|r| (lookup(&r.field) == r.value) == (r.operator == FieldOperator::Equals))
    }

    /// The only value that `field` may have, when the selector asks for one.
    pub fn exact(&self, field: &str) -> Option<&str> {
        let exact = |r: &&FieldRequirement| r.field == field && r.operator == FieldOperator::Equals;
        self.requirements.iter().find(exact).map(|r| r.value.as_str())
    }
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, r) in self.requirements.iter().enumerate() {
            let comma = if index > 0 { "," } else { "" };
            let operator = if r.operator == FieldOperator::Equals { "=" } else { "!=" };
            let value = r.value.replace('\\', "\\\\").replace(',', "\\,").replace('=', "\\=");
            write!(f, "{comma}{}{operator}{value}", r.field)?;
        }
        Ok(())
    }
}

fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (index, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..index]);
                start = index + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

fn split_term(term: &str) -> Option<(&str, FieldOperator, &str)> {
    const OPERATORS: &[(&str, FieldOperator)] =
        &[("!=", FieldOperator::NotEquals), ("==", FieldOperator::Equals), ("=", FieldOperator::Equals)];
    term.char_indices().find_map(|(index, _)| {
        let (symbol, operator) = OPERATORS.iter().find(|(s, _)| term[index..].starts_with(s))?;
        Some((&term[..index], *operator, &term[index + symbol.len()..]))
    })
}

fn unescape(value: &str) -> Result<String, String> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(escaped @ ('\\' | ',' | '=')) => plain.push(escaped),
                Some(other) => {
                    return Err(format!("invalid field selector: invalid escape sequence: \\{other}"));
                }
                None => return Err("invalid field selector: invalid escape sequence: \\".to_owned()),
            },
            // Upstream prints the rune as a number.
            ',' | '=' => {
                return Err(format!(
                    "invalid field selector: unescaped character in value: {}",
                    u32::from(c)
                ));
            }
            _ => plain.push(c),
        }
    }
    Ok(plain)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn labels(text: &str) -> BTreeMap<String, String> {
        let pairs = text.split(',').filter(|p| !p.is_empty());
        pairs.map(|p| p.split_once('=').expect("key=value")).map(|(k, v)| (k.into(), v.into())).collect()
    }

    #[test]
    fn label_selectors_match() {
        for (selector, printed, good, bad) in [
            ("", "", &["", "a=b"][..], &[][..]),
            ("a=b", "a=b", &["a=b", "a=b,c=d"], &["", "a=c"]),
            ("a==b", "a==b", &["a=b"], &["a=c"]),
            ("a!=b", "a!=b", &["", "a=c"], &["a=b"]),
            ("z=1, a in (y , x)", "a in (x,y),z=1", &["a=x,z=1", "a=y,z=1"], &["a=x", "a=q,z=1"]),
            ("a notin (x,)", "a notin (,x)", &["", "a=y"], &["a=x", "a="]),
            ("a", "a", &["a=", "a=b"], &["b=a"]),
            ("!a", "!a", &["b=a"], &["a="]),
            ("a>1,a<5", "a>1,a<5", &["a=2"], &["a=1", "a=5", "a=x", ""]),
            ("in in (in,notin)", "in in (in,notin)", &["in=in"], &["in=x"]),
            ("a=", "a=", &["a="], &["a=b", ""]),
            ("x.io/a=b", "x.io/a=b", &["x.io/a=b"], &[""]),
        ] {
            let parsed = LabelSelector::parse(selector).expect(selector);
            assert_eq!(parsed.to_string(), printed);
            for set in good {
                assert!(parsed.matches_map(&labels(set)), "{selector} should match {set}");
            }
            for set in bad {
                assert!(!parsed.matches_map(&labels(set)), "{selector} should not match {set}");
            }
        }
    }

    #[test]
    fn bad_label_selectors_say_why() {
        for (selector, message) in [
            ("a=b,", "found '', expected: identifier after ','"),
            (",a", "found ',', expected: !, identifier, or 'end of string'"),
            ("a b", "unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a in b", "unable to parse requirement: found 'b' expected: '('"),
            ("a in (b", "unable to parse requirement: found '', expected: ',' or ')'"),
            ("!", "unable to parse requirement: found '', expected: identifier"),
            (
                "a>x",
                "unable to parse requirement: values[0]: Invalid value: \"x\": for 'Gt', 'Lt' operators, the value \
                 must be an integer",
            ),
        ] {
            assert_eq!(LabelSelector::parse(selector).unwrap_err(), message, "{selector}");
        }
        assert!(LabelSelector::parse("a=b=c").is_err());
        assert!(LabelSelector::parse("-a=b").unwrap_err().contains("Invalid value: \"-a\""));
    }

    #[test]
    fn selector_objects_match() {
        let object = json!({"matchLabels": {"a": "b"}, "matchExpressions": [
            {"key": "c", "operator": "In", "values": ["d", "e"]}, {"key": "f", "operator": "DoesNotExist"}]});
        let selector = LabelSelector::from_object(&object).unwrap();
        assert_eq!(selector.to_string(), "a=b,c in (d,e),!f");
        assert!(selector.matches_object(&json!({"metadata": {"labels": {"a": "b", "c": "e"}}})));
        assert!(!selector.matches_object(&json!({"metadata": {}})));
        assert!(LabelSelector::from_object(&json!({})).unwrap().matches_object(&json!({})));
        assert!(!LabelSelector::from_object(&Value::Null).unwrap().matches_object(&json!({})));
        let wrong = json!({"matchExpressions": [{"key": "c", "operator": "Is"}]});
        assert_eq!(
            LabelSelector::from_object(&wrong).unwrap_err(),
            "\"Is\" is not a valid label selector operator"
        );
    }

    #[test]
    fn field_selectors_are_read() {
        let selector = FieldSelector::parse("status.phase=Running,spec.nodeName!=n\\,1").unwrap();
        assert_eq!(selector.to_string(), "spec.nodeName!=n\\,1,status.phase=Running");
        assert_eq!(selector.exact("status.phase"), Some("Running"));
        assert_eq!(selector.exact("spec.nodeName"), None);
        assert!(selector.matches(|f| if f == "status.phase" { "Running".into() } else { "x".into() }));
        assert!(!selector.matches(|f| if f == "status.phase" { "Running".into() } else { "n,1".into() }));
        for (text, message) in [
            ("a", "invalid selector: 'a'; can't understand 'a'"),
            ("a=b=c", "invalid field selector: unescaped character in value: 61"),
            ("a=\\x", "invalid field selector: invalid escape sequence: \\x"),
        ] {
            assert_eq!(FieldSelector::parse(text).unwrap_err(), message);
        }
        assert!(FieldSelector::parse("").unwrap().is_empty());
    }
}
