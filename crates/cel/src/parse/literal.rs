//! What numbers and quoted texts stand for.

use crate::ast::Literal;
use crate::parse::lexer::{Token, TokenKind};

/// The number of a token, with a minus before it or not.
pub fn number(token: &Token, negative: bool) -> Result<Literal, &'static str> {
    let sign = if negative { "-" } else { "" };
    let digits = token.text.trim_end_matches(['u', 'U']);
    let (digits, radix) = match digits.strip_prefix("0x") {
        Some(hexadecimal) => (hexadecimal, 16),
        None => (digits, 10),
    };
    match token.kind {
        TokenKind::Double => {
            let number: Option<f64> = format!("{sign}{}", token.text).parse().ok();
            number.filter(|number| number.is_finite()).map(Literal::Double).ok_or("invalid double literal")
        }
        TokenKind::Uint => {
            u64::from_str_radix(digits, radix).map(Literal::Uint).map_err(|_| "invalid uint literal")
        }
        _ => i64::from_str_radix(&format!("{sign}{digits}"), radix)
            .map(Literal::Int)
            .map_err(|_| "invalid int literal"),
    }
}

/// The text or the bytes between the quotes.
pub fn text(token: &Token) -> Result<Literal, &'static str> {
    let prefix = token.text.find(['"', '\'']).unwrap_or(0);
    let raw = token.text[..prefix].contains(['r', 'R']);
    let quoted = &token.text[prefix..];
    let quote = &quoted[..1];
    let closing = if quoted.len() >= 6 && quoted.starts_with(&quote.repeat(3)) { 3 } else { 1 };
    let inner = &quoted[closing..quoted.len() - closing];
    let bytes = token.kind == TokenKind::Bytes;
    let unescaped = if raw { inner.as_bytes().to_vec() } else { unescape(inner, bytes)? };
    if bytes {
        return Ok(Literal::Bytes(unescaped.into()));
    }
    let text = String::from_utf8(unescaped).map_err(|_| "invalid unicode code point")?;
    Ok(Literal::String(text.into()))
}

fn unescape(inner: &str, bytes: bool) -> Result<Vec<u8>, &'static str> {
    let mut out = Vec::with_capacity(inner.len());
    let mut chars = inner.chars();
    let push = |out: &mut Vec<u8>, c: char| out.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
    while let Some(next) = chars.next() {
        if next != '\\' {
            push(&mut out, next);
            continue;
        }
        let code = chars.next().ok_or("unable to unescape string")?;
        let (digits, radix) = match code {
            'x' | 'X' => (2, 16),
            'u' => (4, 16),
            'U' => (8, 16),
            '0'..='3' => (2, 8),
            _ => (0, 0),
        };
        if radix == 0 {
            let plain = match code {
                'a' => '\u{7}',
                'b' => '\u{8}',
                'f' => '\u{c}',
                'n' => '\n',
                'r' => '\r',
                't' => '\t',
                'v' => '\u{b}',
                other => other,
            };
            push(&mut out, plain);
            continue;
        }
        let mut value = if radix == 8 { code.to_digit(8).unwrap_or(0) } else { 0 };
        for _ in 0..digits {
            let digit = chars.next().and_then(|c| c.to_digit(radix)).ok_or("unable to unescape string")?;
            value = value.wrapping_mul(radix).wrapping_add(digit);
        }
        if bytes && digits == 2 {
            out.push(u8::try_from(value).map_err(|_| "invalid octal escape")?);
        } else if bytes {
            return Err("unable to unescape string");
        } else {
            push(&mut out, char::from_u32(value).ok_or("invalid unicode code point")?);
        }
    }
    Ok(out)
}
