//! Tokens of a text, with the characters that belong to none reported.

use crate::error::CompileErrors;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenKind {
    /// A name, or a word that the parser knows.
    Ident,
    /// A name in backticks, which Kubernetes does not enable.
    Quoted,
    Int,
    Uint,
    Double,
    String,
    Bytes,
    Symbol,
    End,
}

#[derive(Clone, Debug)]
pub struct Token {
    pub kind: TokenKind,
    /// As written, quotes and prefixes included.
    pub text: String,
    pub offset: usize,
}

impl Token {
    /// Whether an expression may begin with it.
    pub fn starts_expression(&self) -> bool {
        match self.kind {
            TokenKind::Symbol => matches!(self.text.as_str(), "[" | "{" | "(" | "." | "-" | "!"),
            TokenKind::Quoted | TokenKind::End => false,
            _ => true,
        }
    }
}

const SYMBOLS: &[&str] = &[
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":",
    "+", "*", "/", "%",
];

/// All tokens, the last of which is the end.
pub fn tokens(chars: &[char], errors: &mut CompileErrors) -> Vec<Token> {
    let mut lexer = Lexer { chars, position: 0 };
    let mut tokens = Vec::new();
    while lexer.skip_blank() {
        let start = lexer.position;
        match lexer.next() {
            Ok(kind) => {
                let text: String = chars[start..lexer.position].iter().collect();
                // `in` is an operator wherever it stands.
                let kind = if kind == TokenKind::Ident && text == "in" { TokenKind::Symbol } else { kind };
                tokens.push(Token { kind, text, offset: start });
            }
            Err(end) => {
                let end = end.min(chars.len());
                let text: String = chars[start..end].iter().collect();
                errors.report(start, format!("Syntax error: token recognition error at: '{text}'"));
                lexer.position = end.max(start + 1);
            }
        }
    }
    tokens.push(Token { kind: TokenKind::End, text: "<EOF>".to_owned(), offset: chars.len() });
    tokens
}

struct Lexer<'a> {
    chars: &'a [char],
    position: usize,
}

/// A token's kind, or where the text that is no token ends.
type Lexed = Result<TokenKind, usize>;

impl Lexer<'_> {
    fn peek(&self, ahead: usize) -> Option<char> {
        self.chars.get(self.position + ahead).copied()
    }

    /// Passes blanks and comments. Whether anything is left.
    fn skip_blank(&mut self) -> bool {
        while let Some(next) = self.peek(0) {
            if matches!(next, ' ' | '\t' | '\r' | '\n' | '\u{c}') {
                self.position += 1;
            } else if next == '/' && self.peek(1) == Some('/') {
                while self.peek(0).is_some_and(|c| c != '\n') {
                    self.position += 1;
                }
            } else {
                return true;
            }
        }
        false
    }

    fn next(&mut self) -> Lexed {
        let first = self.peek(0).ok_or(self.position)?;
        if let Some((quote_at, raw, bytes)) = self.quoted() {
            self.position += quote_at;
            let end = self.string(raw)?;
            self.position = end;
            return Ok(if bytes { TokenKind::Bytes } else { TokenKind::String });
        }
        if first.is_ascii_alphabetic() || first == '_' {
            self.pass(|c| c.is_ascii_alphanumeric() || c == '_');
            return Ok(TokenKind::Ident);
        }
        if first.is_ascii_digit() || (first == '.' && self.peek(1).is_some_and(|c| c.is_ascii_digit())) {
            return Ok(self.number());
        }
        if first == '`' {
            self.position += 1;
            self.pass(|c| c.is_ascii_alphanumeric() || "_.-/ ".contains(c));
            return if self.peek(0) == Some('`') {
                self.position += 1;
                Ok(TokenKind::Quoted)
            } else {
                Err(self.position + 1)
            };
        }
        self.symbol(first)
    }

    fn symbol(&mut self, first: char) -> Lexed {
        for symbol in SYMBOLS {
            if symbol.chars().enumerate().all(|(index, c)| self.peek(index) == Some(c)) {
                self.position += symbol.len();
                return Ok(TokenKind::Symbol);
            }
        }
        // Half of an operator takes the character that disappoints with it.
        Err(self.position + if "=&|".contains(first) { 2 } else { 1 })
    }

    fn pass(&mut self, keep: impl Fn(char) -> bool) {
        while self.peek(0).is_some_and(&keep) {
            self.position += 1;
        }
    }

    /// Where the quote is after prefixes, whether the text is raw and whether it is bytes.
    fn quoted(&self) -> Option<(usize, bool, bool)> {
        let (mut raw, mut bytes) = (false, false);
        for ahead in 0..3 {
            match self.peek(ahead)? {
                '"' | '\'' => return Some((ahead, raw, bytes)),
                'r' | 'R' if !raw => raw = true,
                'b' | 'B' if !bytes && !raw => bytes = true,
                _ => return None,
            }
        }
        None
    }

    /// The end of the string that begins here.
    fn string(&self, raw: bool) -> Result<usize, usize> {
        let quote = self.chars[self.position];
        let triple = self.peek(1) == Some(quote) && self.peek(2) == Some(quote);
        let closing = if triple { 3 } else { 1 };
        let mut at = self.position + closing;
        loop {
            let Some(&next) = self.chars.get(at) else {
                // An empty string and a quote that is never closed.
                return if triple { Ok(self.position + 2) } else { Err(at) };
            };
            if next == quote && (0..closing).all(|ahead| self.chars.get(at + ahead) == Some(&quote)) {
                return Ok(at + closing);
            }
            if !triple && (next == '\n' || next == '\r') {
                return Err(at + 1);
            }
            at = if next == '\\' && !raw { self.escape(at)? } else { at + 1 };
        }
    }

    /// The end of the escape that begins here.
    fn escape(&self, at: usize) -> Result<usize, usize> {
        let hex = |from: usize, count: usize| match (from..from + count)
            .find(|index| !self.chars.get(*index).is_some_and(char::is_ascii_hexdigit))
        {
            None => Ok(from + count),
            Some(wrong) => Err(wrong + 1),
        };
        match self.chars.get(at + 1) {
            Some('a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '\\' | '?' | '`') => Ok(at + 2),
            Some('x' | 'X') => hex(at + 2, 2),
            Some('u') => hex(at + 2, 4),
            Some('U') => hex(at + 2, 8),
            Some('0'..='3') => {
                match (at + 2..at + 4).find(|index| !matches!(self.chars.get(*index), Some('0'..='7'))) {
                    None => Ok(at + 4),
                    Some(wrong) => Err(wrong + 1),
                }
            }
            _ => Err(at + 2),
        }
    }

    fn number(&mut self) -> TokenKind {
        let hexadecimal = self.peek(0) == Some('0')
            && self.peek(1) == Some('x')
            && self.peek(2).is_some_and(|c| c.is_ascii_hexdigit());
        if hexadecimal {
            self.position += 2;
            self.pass(|c| c.is_ascii_hexdigit());
            return self.unsigned_or(TokenKind::Int);
        }
        self.pass(|c| c.is_ascii_digit());
        let mut double = false;
        if self.peek(0) == Some('.') && self.peek(1).is_some_and(|c| c.is_ascii_digit()) {
            double = true;
            self.position += 1;
            self.pass(|c| c.is_ascii_digit());
        }
        if matches!(self.peek(0), Some('e' | 'E')) {
            let signed = usize::from(matches!(self.peek(1), Some('+' | '-')));
            if self.peek(1 + signed).is_some_and(|c| c.is_ascii_digit()) {
                double = true;
                self.position += 1 + signed;
                self.pass(|c| c.is_ascii_digit());
            }
        }
        if double { TokenKind::Double } else { self.unsigned_or(TokenKind::Int) }
    }

    fn unsigned_or(&mut self, otherwise: TokenKind) -> TokenKind {
        if matches!(self.peek(0), Some('u' | 'U')) {
            self.position += 1;
            return TokenKind::Uint;
        }
        otherwise
    }
}
