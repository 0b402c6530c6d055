//! From text to tree: [`lexer`] cuts tokens, the parser here makes nodes, [`macros`] expands the macros.
//!
//! What always holds: a text of more than [`MAX_CODE_POINTS`] and a tree deeper than [`MAX_DEPTH`] are refused,
//! so that everything after may recurse.

mod lexer;
mod literal;
mod macros;

use std::sync::Arc;

use crate::ast::{Call, Entry, Expr, ExprKind, Field, Literal};
use crate::error::CompileErrors;
use lexer::{Token, TokenKind};

/// Upstream: cel-go parser/options.go expressionSizeCodePointLimit
const MAX_CODE_POINTS: usize = 100_000;
/// Upstream: cel-go parser/options.go maxRecursionDepth
const MAX_DEPTH: usize = 250;

/// How deep brackets may nest. Every level takes many calls of the parser, which has to fit a thread's stack.
const MAX_NESTING: usize = 120;
/// How many nodes a tree may have; `optMap` copies what it stands on.
const MAX_NODES: usize = 4 * MAX_CODE_POINTS;

/// What may begin an expression, as upstream's messages list it.
const PRIMARY: &str = "{'[', '{', '(', '.', '-', '!', 'true', 'false', 'null', NUM_FLOAT, NUM_INT, NUM_UINT, \
                       STRING, BYTES, IDENTIFIER}";

const RESERVED: &[&str] = &[
    "as",
    "break",
    "const",
    "continue",
    "else",
    "false",
    "for",
    "function",
    "if",
    "import",
    "in",
    "let",
    "loop",
    "package",
    "namespace",
    "null",
    "return",
    "true",
    "var",
    "void",
    "while",
];

/// Binary operators: the text, how tightly it binds, and the function that it calls.
const OPERATORS: &[(&str, u8, &str)] = &[
    ("<", 1, "_<_"),
    ("<=", 1, "_<=_"),
    (">=", 1, "_>=_"),
    (">", 1, "_>_"),
    ("==", 1, "_==_"),
    ("!=", 1, "_!=_"),
    ("in", 1, "@in"),
    ("+", 2, "_+_"),
    ("-", 2, "_-_"),
    ("*", 3, "_*_"),
    ("/", 3, "_/_"),
    ("%", 3, "_%_"),
];

/// The parser gave up; what is wrong has been reported.
struct Stop;

type Parsed<T> = Result<T, Stop>;

/// Parses a text. The tree stands for itself only when there are no errors.
pub fn parse(text: &str) -> Result<Expr, CompileErrors> {
    let mut errors = CompileErrors::new(text);
    let chars: Vec<char> = text.chars().collect();
    if chars.len() > MAX_CODE_POINTS {
        let message = format!(
            "expression code point size exceeds limit: size: {}, limit {MAX_CODE_POINTS}",
            chars.len()
        );
        errors.report(0, message);
        return Err(errors);
    }
    let tokens = lexer::tokens(&chars, &mut errors);
    let mut parser = Parser { tokens, position: 0, next_id: 0, nesting: 0, errors };
    let parsed = parser.whole();
    let mut errors = parser.errors;
    match parsed {
        Ok(expr) if errors.is_empty() => Ok(expr),
        _ => {
            errors.sort();
            Err(errors)
        }
    }
}

struct Parser {
    tokens: Vec<Token>,
    position: usize,
    next_id: usize,
    nesting: usize,
    errors: CompileErrors,
}

impl Parser {
    fn whole(&mut self) -> Parsed<Expr> {
        let expr = self.expression()?;
        let token = self.peek().clone();
        if token.kind == TokenKind::End {
            return Ok(expr);
        }
        let alone = self.tokens.get(self.position + 1).is_none_or(|next| next.kind == TokenKind::End);
        let what = if alone { "extraneous" } else { "mismatched" };
        self.syntax(&token, format!("{what} input '{}' expecting <EOF>", token.text))
    }

    fn peek(&self) -> &Token {
        &self.tokens[self.position]
    }

    fn advance(&mut self) -> Token {
        let token = self.tokens[self.position].clone();
        // The last token is the end, which is never passed.
        self.position = (self.position + 1).min(self.tokens.len() - 1);
        token
    }

    fn at(&self, symbol: &str) -> bool {
        let token = self.peek();
        token.kind == TokenKind::Symbol && token.text == symbol
    }

    fn take(&mut self, symbol: &str) -> Option<Token> {
        self.at(symbol).then(|| self.advance())
    }

    fn syntax<T>(&mut self, token: &Token, message: impl std::fmt::Display) -> Parsed<T> {
        self.errors.report(token.offset, format!("Syntax error: {message}"));
        Err(Stop)
    }

    fn refuse<T>(&mut self, offset: usize, message: impl Into<String>) -> Parsed<T> {
        self.errors.report(offset, message);
        Err(Stop)
    }

    fn expect(&mut self, symbol: &str, otherwise: Option<&str>) -> Parsed<Token> {
        if let Some(token) = self.take(symbol) {
            return Ok(token);
        }
        let token = self.peek().clone();
        match otherwise {
            Some(set) => self.syntax(&token, format!("mismatched input '{}' expecting {set}", token.text)),
            None => self.syntax(&token, format!("missing '{symbol}' at '{}'", token.text)),
        }
    }

    fn node(&mut self, offset: usize, kind: ExprKind) -> Expr {
        let id = self.next_id;
        self.next_id += 1;
        let mut expr = Expr { id, offset, depth: 0, kind };
        expr.depth = 1 + expr.children().iter().map(|child| child.depth).max().unwrap_or(0);
        expr
    }

    /// A node, unless the tree is too deep with it.
    fn bounded(&mut self, offset: usize, kind: ExprKind) -> Parsed<Expr> {
        let expr = self.node(offset, kind);
        if expr.depth > MAX_DEPTH { self.too_deep() } else { Ok(expr) }
    }

    fn too_deep<T>(&mut self) -> Parsed<T> {
        self.refuse(0, format!("Internal error: expression recursion limit exceeded: {MAX_DEPTH}"))
    }

    fn call(&mut self, offset: usize, function: &str, args: Vec<Expr>) -> Parsed<Expr> {
        let call = Call { function: function.into(), target: None, args };
        self.bounded(offset, ExprKind::Call(Box::new(call)))
    }

    fn expression(&mut self) -> Parsed<Expr> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            return self.too_deep();
        }
        let expr = self.conditional()?;
        self.nesting -= 1;
        Ok(expr)
    }

    fn conditional(&mut self) -> Parsed<Expr> {
        let condition = self.logic("||")?;
        let Some(question) = self.take("?") else { return Ok(condition) };
        let truthy = self.logic("||")?;
        self.expect(":", Some("':'"))?;
        let falsy = self.expression()?;
        self.call(question.offset, "_?_:_", vec![condition, truthy, falsy])
    }

    /// Terms of `||` or of `&&`, which make a balanced tree however many they are.
    ///
    /// Upstream: cel-go parser/helper.go logicManager
    fn logic(&mut self, operator: &'static str) -> Parsed<Expr> {
        let term = |parser: &mut Self| match operator {
            "||" => parser.logic("&&"),
            _ => parser.binary(1),
        };
        let mut terms = vec![Some(term(self)?)];
        let mut offsets = Vec::new();
        while let Some(token) = self.take(operator) {
            offsets.push(token.offset);
            terms.push(Some(term(self)?));
        }
        let function = if operator == "||" { "_||_" } else { "_&&_" };
        self.balance(function, &mut terms, &offsets, 0)
    }

    fn balance(
        &mut self,
        function: &str,
        terms: &mut [Option<Expr>],
        offsets: &[usize],
        low: usize,
    ) -> Parsed<Expr> {
        let count = offsets.len();
        if count == 0 {
            return terms[low].take().map_or_else(|| self.too_deep(), Ok);
        }
        // The operator in the middle, the later one of two.
        let middle = count / 2;
        let left = self.balance(function, terms, &offsets[..middle], low)?;
        let right = self.balance(function, terms, &offsets[middle + 1..], low + middle + 1)?;
        self.call(offsets[middle], function, vec![left, right])
    }

    /// Operators that bind at least so tightly.
    fn binary(&mut self, minimum: u8) -> Parsed<Expr> {
        let mut left = self.unary()?;
        loop {
            let token = self.peek();
            let operator = match token.kind {
                TokenKind::Symbol => OPERATORS.iter().find(|(text, ..)| *text == token.text),
                _ => None,
            };
            let Some((_, tightness, function)) = operator.filter(|(_, tightness, _)| *tightness >= minimum)
            else {
                return Ok(left);
            };
            let offset = self.advance().offset;
            let right = self.binary(tightness + 1)?;
            left = self.call(offset, function, vec![left, right])?;
        }
    }

    fn unary(&mut self) -> Parsed<Expr> {
        for (symbol, function) in [("!", "!_"), ("-", "-_")] {
            let Some(first) = self.take(symbol) else { continue };
            let mut odd = true;
            let mut last = first.offset;
            while let Some(token) = self.take(symbol) {
                odd = !odd;
                last = token.offset;
            }
            // A minus right before a number belongs to the number.
            if symbol == "-" && odd && matches!(self.peek().kind, TokenKind::Int | TokenKind::Double) {
                let number = self.number(Some(last))?;
                return self.members(number);
            }
            let operand = self.member()?;
            return if odd { self.call(first.offset, function, vec![operand]) } else { Ok(operand) };
        }
        self.member()
    }

    fn member(&mut self) -> Parsed<Expr> {
        let primary = self.primary()?;
        self.members(primary)
    }

    /// What follows an operand: fields, calls, indexes.
    fn members(&mut self, mut operand: Expr) -> Parsed<Expr> {
        loop {
            operand = if let Some(dot) = self.take(".") {
                self.field_or_call(operand, &dot)?
            } else if let Some(open) = self.take("[") {
                let optional = self.take("?").is_some();
                let index = self.expression()?;
                self.expect("]", None)?;
                self.call(open.offset, if optional { "_[?_]" } else { "_[_]" }, vec![operand, index])?
            } else if self.at("{") && operand.qualified_name().is_some() {
                self.message(operand)?
            } else {
                return Ok(operand);
            };
        }
    }

    fn field_or_call(&mut self, operand: Expr, dot: &Token) -> Parsed<Expr> {
        let optional = self.take("?").is_some();
        let name = self.peek().clone();
        match name.kind {
            TokenKind::Ident => self.advance(),
            TokenKind::Quoted => return self.refuse(name.offset, "unsupported syntax: '`'"),
            _ if optional => {
                let message =
                    format!("mismatched input '{}' expecting {{IDENTIFIER, ESC_IDENTIFIER}}", name.text);
                self.errors.report(name.offset, format!("Syntax error: {message}"));
                return self.refuse(name.offset, "unsupported ident kind");
            }
            TokenKind::End => return self.syntax(&name, "no viable alternative at input '.'"),
            _ => return self.syntax(&name, format!("no viable alternative at input '.{}'", name.text)),
        };
        if optional {
            let field = self.node(name.offset, ExprKind::Literal(Literal::String(name.text.as_str().into())));
            return self.call(dot.offset, "_?._", vec![operand, field]);
        }
        if let Some(open) = self.take("(") {
            let args = self.arguments()?;
            return self.member_call(open.offset, &name.text, operand, args);
        }
        let field: Arc<str> = name.text.as_str().into();
        self.bounded(dot.offset, ExprKind::Select { operand: Box::new(operand), field, test_only: false })
    }

    fn arguments(&mut self) -> Parsed<Vec<Expr>> {
        let mut args = Vec::new();
        if self.take(")").is_some() {
            return Ok(args);
        }
        loop {
            args.push(self.expression()?);
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect(")", Some("{')', ','}"))?;
        Ok(args)
    }

    fn member_call(&mut self, offset: usize, name: &str, target: Expr, args: Vec<Expr>) -> Parsed<Expr> {
        match self.expand_member(offset, name, target, args)? {
            macros::Expanded::Yes(expr) if expr.depth > MAX_DEPTH => self.too_deep(),
            macros::Expanded::Yes(expr) => Ok(expr),
            macros::Expanded::No(target, args) => {
                let call = Call { function: name.into(), target: Some(target), args };
                self.bounded(offset, ExprKind::Call(Box::new(call)))
            }
        }
    }

    fn primary(&mut self) -> Parsed<Expr> {
        let token = self.peek().clone();
        match token.kind {
            TokenKind::Ident => self.named(&token),
            TokenKind::Int | TokenKind::Double | TokenKind::Uint => self.number(None),
            TokenKind::String | TokenKind::Bytes => {
                self.advance();
                match literal::text(&token) {
                    Ok(literal) => Ok(self.node(token.offset, ExprKind::Literal(literal))),
                    Err(message) => self.refuse(token.offset, message),
                }
            }
            TokenKind::Symbol => self.bracketed(&token),
            TokenKind::Quoted | TokenKind::End => self.no_primary(&token),
        }
    }

    fn no_primary<T>(&mut self, token: &Token) -> Parsed<T> {
        let next_starts = self.tokens.get(self.position + 1).is_some_and(Token::starts_expression);
        let what = if token.kind != TokenKind::End && next_starts { "extraneous" } else { "mismatched" };
        self.syntax(token, format!("{what} input '{}' expecting {PRIMARY}", token.text))
    }

    fn named(&mut self, token: &Token) -> Parsed<Expr> {
        self.advance();
        let constant = match token.text.as_str() {
            "true" => Some(Literal::Bool(true)),
            "false" => Some(Literal::Bool(false)),
            "null" => Some(Literal::Null),
            _ => None,
        };
        if let Some(constant) = constant {
            return Ok(self.node(token.offset, ExprKind::Literal(constant)));
        }
        if RESERVED.contains(&token.text.as_str()) {
            return self.refuse(token.offset, format!("reserved identifier: {}", token.text));
        }
        let Some(open) = self.take("(") else {
            return Ok(self.node(token.offset, ExprKind::Ident(token.text.as_str().into())));
        };
        let args = self.arguments()?;
        if token.text == "has" && args.len() == 1 {
            return self.expand_has(open.offset, args);
        }
        self.call(open.offset, &token.text, args)
    }

    fn number(&mut self, sign: Option<usize>) -> Parsed<Expr> {
        let token = self.advance();
        let offset = sign.unwrap_or(token.offset);
        match literal::number(&token, sign.is_some()) {
            Ok(literal) => Ok(self.node(offset, ExprKind::Literal(literal))),
            Err(message) => self.refuse(offset, message),
        }
    }

    fn bracketed(&mut self, token: &Token) -> Parsed<Expr> {
        match token.text.as_str() {
            "(" => {
                self.advance();
                let expr = self.expression()?;
                self.expect(")", None)?;
                Ok(expr)
            }
            "[" => {
                self.advance();
                self.list(token.offset)
            }
            "{" => {
                self.advance();
                self.map(token.offset)
            }
            "." => {
                self.advance();
                let name = self.peek().clone();
                match name.kind {
                    TokenKind::Ident => self.named(&name),
                    _ => self.syntax(&name, format!("mismatched input '{}' expecting IDENTIFIER", name.text)),
                }
            }
            _ => self.no_primary(token),
        }
    }

    fn list(&mut self, offset: usize) -> Parsed<Expr> {
        let mut items = Vec::new();
        while !self.at("]") {
            let optional = self.take("?").is_some();
            items.push((self.expression()?, optional));
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect("]", Some("{']', ','}"))?;
        self.bounded(offset, ExprKind::List(items))
    }

    fn map(&mut self, offset: usize) -> Parsed<Expr> {
        let mut entries = Vec::new();
        while !self.at("}") {
            let optional = self.take("?").is_some();
            let key = self.expression()?;
            self.expect(":", None)?;
            let value = self.expression()?;
            entries.push(Entry { key, value, optional });
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect("}", Some("{'}', ','}"))?;
        self.bounded(offset, ExprKind::Map(entries))
    }

    fn message(&mut self, name: Expr) -> Parsed<Expr> {
        let open = self.advance();
        let mut fields = Vec::new();
        while !self.at("}") {
            let optional = self.take("?").is_some();
            let field = self.advance();
            if field.kind != TokenKind::Ident {
                let set = "{IDENTIFIER, ESC_IDENTIFIER}";
                return self.syntax(&field, format!("mismatched input '{}' expecting {set}", field.text));
            }
            let colon = self.expect(":", None)?;
            let value = self.expression()?;
            fields.push(Field { offset: colon.offset, name: field.text.as_str().into(), value, optional });
            if self.take(",").is_none() {
                break;
            }
        }
        self.expect("}", Some("{'}', ','}"))?;
        let name = name.qualified_name().unwrap_or_default().into();
        self.bounded(open.offset, ExprKind::Struct { name, fields })
    }
}
