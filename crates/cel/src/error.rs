//! What goes wrong: [`CompileErrors`] with their places in the text, and [`EvalError`].

use std::borrow::Cow;
use std::fmt;

/// How many errors of one text are told.
const MAX_ERRORS: usize = 100;
/// The longest line that is shown with an error.
const MAX_SNIPPET_BYTES: usize = 16384;

/// One thing wrong with an expression.
#[derive(Clone, Debug, PartialEq, Eq)]
struct CompileError {
    /// From 1.
    line: usize,
    /// From 0, in characters.
    column: usize,
    message: String,
}

/// Everything wrong with an expression, in the order of the text. It displays as cel-go's issues do, with the
/// lines and a caret below each place.
///
/// Upstream: cel-go common/errors.go ToDisplayString
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CompileErrors {
    text: String,
    errors: Vec<CompileError>,
    count: usize,
}

impl CompileErrors {
    pub(crate) fn new(text: &str) -> Self {
        CompileErrors { text: text.to_owned(), errors: Vec::new(), count: 0 }
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// Notes an error at an offset in characters.
    pub(crate) fn report(&mut self, offset: usize, message: impl Into<String>) {
        self.count += 1;
        if self.errors.len() < MAX_ERRORS {
            let before = self.text.chars().take(offset);
            let (line, column) = before
                .fold((1, 0), |(line, column), c| if c == '\n' { (line + 1, 0) } else { (line, column + 1) });
            self.errors.push(CompileError { line, column, message: message.into() });
        }
    }

    pub(crate) fn sort(&mut self) {
        self.errors.sort_by_key(|error| (error.line, error.column));
    }

    /// The messages alone.
    pub fn messages(&self) -> impl Iterator<Item = &str> {
        self.errors.iter().map(|error| error.message.as_str())
    }
}

impl CompileError {
    /// Upstream: cel-go common/error.go ToDisplayString
    fn show(&self, text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "ERROR: <input>:{}:{}: {}", self.line, self.column + 1, self.message)?;
        let Some(line) = text.split('\n').nth(self.line - 1).filter(|line| line.len() <= MAX_SNIPPET_BYTES)
        else {
            return Ok(());
        };
        let line = line.replace('\t', " ");
        let before: String =
            line.chars().take(self.column).map(|c| if c.len_utf8() > 1 { '\u{ff0e}' } else { '.' }).collect();
        let wide = line.chars().nth(self.column).is_some_and(|c| c.len_utf8() > 1);
        let caret = if wide { '\u{ff3e}' } else { '^' };
        write!(f, "\n | {line}\n | {before}{caret}")
    }
}

impl fmt::Display for CompileErrors {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, error) in self.errors.iter().enumerate() {
            if index > 0 {
                f.write_str("\n")?;
            }
            error.show(&self.text, f)?;
        }
        if self.count > self.errors.len() {
            write!(f, "\n{} more errors were truncated", self.count - self.errors.len())?;
        }
        Ok(())
    }
}

impl std::error::Error for CompileErrors {}

/// Why an evaluation has no value, in upstream's words.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum EvalError {
    #[error("{0}")]
    Failed(Cow<'static, str>),
    #[error("operation cancelled: actual cost limit exceeded")]
    CostLimitExceeded,
}

impl EvalError {
    pub fn new(message: impl Into<Cow<'static, str>>) -> Self {
        EvalError::Failed(message.into())
    }

    pub(crate) fn no_such_key(key: impl fmt::Display) -> Self {
        EvalError::Failed(format!("no such key: {key}").into())
    }

    pub(crate) fn no_such_overload() -> Self {
        EvalError::Failed("no such overload".into())
    }
}
