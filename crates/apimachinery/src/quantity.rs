//! Resource quantities: `500m`, `1.5Gi`, `1e3`.
//!
//! A quantity is a whole number of nano-units, so that sums and comparisons are exact. What is finer is rounded
//! away from zero, as upstream does; what does not fit 128 bits is not a quantity here.
//!
//! Upstream: apimachinery/pkg/api/resource/quantity.go

use std::cmp::Ordering;
use std::fmt;
use std::str::FromStr;

use serde_json::Value;

const NANO: i128 = 1_000_000_000;

/// How a quantity was written, which decides how it is written again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    DecimalSi,
}

/// Why a text is no quantity, in upstream's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// An amount of some resource. Equal when the amounts are, however they were written.
#[derive(Clone, Copy, Debug)]
pub struct Quantity {
    nanos: i128,
    format: Format,
}

impl Default for Quantity {
    fn default() -> Self {
        Quantity { nanos: 0, format: Format::DecimalSi }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.nanos == other.nanos
    }
}

impl Eq for Quantity {}

impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        self.nanos.cmp(&other.nanos)
    }
}

impl FromStr for Quantity {
    type Err = ParseError;

    fn from_str(text: &str) -> Result<Self, ParseError> {
        Quantity::parse(text)
    }
}

/// The parts of a quantity's text.
struct Parts<'a> {
    negative: bool,
    whole: &'a str,
    fraction: &'a str,
    suffix: &'a str,
}

fn split(text: &str) -> Result<Parts<'_>, ParseError> {
    let (negative, rest) = match text.as_bytes().first() {
        None => return Err(ParseError::Format),
        Some(b'-') => (true, &text[1..]),
        Some(b'+') => (false, &text[1..]),
        Some(_) => (false, text),
    };
    let digits = |s: &str| s.bytes().take_while(u8::is_ascii_digit).count();
    let (whole, rest) = rest.split_at(digits(rest));
    let (fraction, suffix) = match rest.strip_prefix('.') {
        Some(rest) => rest.split_at(digits(rest)),
        None => ("", rest),
    };
    let letters = suffix.bytes().take_while(|b| b"eEinumkKMGTP".contains(b)).count();
    let exponent = &suffix[letters..];
    let exponent = exponent.strip_prefix(['-', '+']).unwrap_or(exponent);
    if exponent.bytes().any(|b| !b.is_ascii_digit()) {
        return Err(ParseError::Format);
    }
    if whole.is_empty() && fraction.is_empty() {
        return Err(if suffix.is_empty() { ParseError::Format } else { ParseError::Numeric });
    }
    Ok(Parts { negative, whole: whole.trim_start_matches('0'), fraction, suffix })
}

/// The base, the exponent and the format that a suffix stands for.
fn interpret(suffix: &str) -> Option<(u32, i32, Format)> {
    const DECIMAL: &[(&str, i32)] = &[
        ("n", -9),
        ("u", -6),
        ("m", -3),
        ("", 0),
        ("k", 3),
        ("M", 6),
        ("G", 9),
        ("T", 12),
        ("P", 15),
        ("E", 18),
    ];
    const BINARY: &[(&str, i32)] = &[("Ki", 10), ("Mi", 20), ("Gi", 30), ("Ti", 40), ("Pi", 50), ("Ei", 60)];
    if let Some((_, exponent)) = DECIMAL.iter().find(|(s, _)| *s == suffix) {
        return Some((10, *exponent, Format::DecimalSi));
    }
    if let Some((_, exponent)) = BINARY.iter().find(|(s, _)| *s == suffix) {
        return Some((2, *exponent, Format::BinarySi));
    }
    let exponent = suffix.strip_prefix(['e', 'E'])?.parse().ok()?;
    Some((10, exponent, Format::DecimalExponent))
}

fn pow10(exponent: u32) -> Option<i128> {
    10i128.checked_pow(exponent)
}

/// `number * 10^shift`, rounded up. `None` when it does not fit.
fn scale_up(number: i128, shift: i32) -> Option<i128> {
    if shift >= 0 {
        if number == 0 { Some(0) } else { number.checked_mul(pow10(shift.unsigned_abs())?) }
    } else {
        match pow10(shift.unsigned_abs()) {
            Some(divisor) => Some(div_up(number, divisor)),
            None => Some(i128::from(number != 0)),
        }
    }
}

/// Division rounded away from zero.
fn div_up(number: i128, divisor: i128) -> i128 {
    let quotient = number / divisor;
    quotient + if number % divisor == 0 { 0 } else { number.signum() }
}

impl Quantity {
    /// Reads a quantity as upstream's `ParseQuantity` does.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let Parts { negative, whole, fraction, suffix } = split(text)?;
        let (base, exponent, mut format) = interpret(suffix).ok_or(ParseError::Suffix)?;
        let fraction = fraction.trim_end_matches('0');
        let all: String = [whole, fraction].concat();
        let digits: i128 = if all.is_empty() { 0 } else { all.parse().map_err(|_| ParseError::Numeric)? };
        let fraction_digits = i32::try_from(fraction.len()).map_err(|_| ParseError::Numeric)?;
        let nanos = if base == 10 {
            exponent.checked_add(9 - fraction_digits).and_then(|shift| scale_up(digits, shift))
        } else {
            digits.checked_mul(1i128 << exponent).and_then(|n| scale_up(n, 9 - fraction_digits))
        };
        let mut nanos = nanos.ok_or(ParseError::Numeric)?;
        if format == Format::BinarySi {
            nanos = nanos.min(i128::from(i64::MAX) * NANO);
            if nanos < NANO && nanos > 0 {
                format = Format::DecimalSi;
            }
        }
        Ok(Quantity { nanos: if negative { -nanos } else { nanos }, format })
    }

    /// Reads a quantity of an object: a string, or a number as it is written.
    pub fn from_value(value: &Value) -> Result<Self, ParseError> {
        match value {
            Value::String(text) => Quantity::parse(text),
            Value::Number(number) => Quantity::parse(&number.to_string()),
            _ => Err(ParseError::Format),
        }
    }

    /// A decimal quantity of whole units.
    pub fn from_value_i64(value: i64) -> Self {
        Quantity { nanos: i128::from(value) * NANO, format: Format::DecimalSi }
    }

    /// A decimal quantity of thousandths.
    pub fn from_milli(milli: i64) -> Self {
        Quantity { nanos: i128::from(milli) * 1_000_000, format: Format::DecimalSi }
    }

    /// A quantity of bytes, written with binary suffixes.
    pub fn from_bytes(bytes: i64) -> Self {
        Quantity { nanos: i128::from(bytes) * NANO, format: Format::BinarySi }
    }

    /// Whole units, rounded away from zero.
    pub fn value(&self) -> i64 {
        saturate(div_up(self.nanos, NANO))
    }

    /// Thousandths, rounded away from zero.
    pub fn milli_value(&self) -> i64 {
        saturate(div_up(self.nanos, 1_000_000))
    }

    /// For ratios, where exactness is lost anyway.
    pub fn as_f64(&self) -> f64 {
        self.nanos as f64 / 1e9
    }

    pub fn is_zero(&self) -> bool {
        self.nanos == 0
    }

    pub fn is_negative(&self) -> bool {
        self.nanos < 0
    }

    /// Whether it is a whole number of units.
    pub fn is_whole(&self) -> bool {
        self.nanos % NANO == 0
    }

    /// Adds, saturating. A zero takes the other's way of writing.
    pub fn add(&mut self, other: &Quantity) {
        if self.is_zero() {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_add(other.nanos);
    }

    /// Subtracts, saturating. A zero takes the other's way of writing.
    pub fn sub(&mut self, other: &Quantity) {
        if self.is_zero() {
            self.format = other.format;
        }
        self.nanos = self.nanos.saturating_sub(other.nanos);
    }
}

fn saturate(number: i128) -> i64 {
    i64::try_from(number).unwrap_or(if number < 0 { i64::MIN } else { i64::MAX })
}

/// The canonical form: the largest suffix that leaves a whole number.
impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.nanos == 0 {
            return f.write_str("0");
        }
        let small = self.nanos.abs() < 1024 * NANO;
        if self.format == Format::BinarySi && !small && self.is_whole() {
            let mut number = self.nanos / NANO;
            let mut suffix = 0;
            while number % 1024 == 0 && suffix < 6 {
                number /= 1024;
                suffix += 1;
            }
            return write!(f, "{number}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"][suffix]);
        }
        let mut number = self.nanos;
        let mut exponent = -9;
        while number % 1000 == 0 && exponent < 18 {
            number /= 1000;
            exponent += 3;
        }
        if self.format == Format::DecimalExponent {
            return if exponent == 0 { write!(f, "{number}") } else { write!(f, "{number}e{exponent}") };
        }
        let suffix = match exponent {
            -9 => "n",
            -6 => "u",
            -3 => "m",
            0 => "",
            3 => "k",
            6 => "M",
            9 => "G",
            12 => "T",
            15 => "P",
            _ => "E",
        };
        write!(f, "{number}{suffix}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_are_read_and_written_canonically() {
        for (text, canonical, value, milli) in [
            ("0", "0", 0, 0),
            ("0Gi", "0", 0, 0),
            ("500m", "500m", 1, 500),
            ("0.5", "500m", 1, 500),
            ("1.5Gi", "1536Mi", 1_610_612_736, 1_610_612_736_000),
            ("1024Mi", "1Gi", 1 << 30, 1000 * (1 << 30)),
            ("1000Ki", "1000Ki", 1_024_000, 1_024_000_000),
            ("128974848", "128974848", 128_974_848, 128_974_848_000),
            ("129e6", "129e6", 129_000_000, 129_000_000_000),
            ("12e2", "1200", 1200, 1_200_000),
            ("1000", "1k", 1000, 1_000_000),
            ("+1.50", "1500m", 2, 1500),
            ("-1.5", "-1500m", -2, -1500),
            (".5", "500m", 1, 500),
            ("1.", "1", 1, 1000),
            ("0.5Gi", "512Mi", 1 << 29, 1000 * (1 << 29)),
            ("512Ki", "512Ki", 524_288, 524_288_000),
            ("1Ki", "1Ki", 1024, 1_024_000),
            ("0.5Ki", "512", 512, 512_000),
            ("1n", "1n", 1, 1),
            ("0.1n", "1n", 1, 1),
            ("1e-9", "1n", 1, 1),
            ("8Ei", "9223372036854775807", i64::MAX, i64::MAX),
            ("100E", "100E", i64::MAX, i64::MAX),
        ] {
            let quantity = Quantity::parse(text).expect(text);
            let expected = if text == "1e-9" { "1e-9" } else { canonical };
            assert_eq!(quantity.to_string(), expected, "{text}");
            assert_eq!((quantity.value(), quantity.milli_value()), (value, milli), "{text}");
            assert_eq!(Quantity::parse(&quantity.to_string()), Ok(quantity), "{text}");
        }
    }

    #[test]
    fn bad_quantities_say_why() {
        for (text, error) in [
            ("", ParseError::Format),
            ("-", ParseError::Format),
            ("1.1.1", ParseError::Format),
            ("1 Gi", ParseError::Format),
            ("10Q", ParseError::Format),
            ("1mi", ParseError::Suffix),
            ("1GiB", ParseError::Format),
            ("1kk", ParseError::Suffix),
            ("1e", ParseError::Suffix),
            ("Gi", ParseError::Numeric),
            ("1e2147483647", ParseError::Numeric),
            ("ä", ParseError::Format),
        ] {
            assert_eq!(Quantity::parse(text), Err(error), "{text:?}");
        }
    }

    #[test]
    fn sums_keep_the_way_of_writing() {
        let mut sum = Quantity::default();
        sum.add(&Quantity::parse("1Gi").unwrap());
        sum.add(&Quantity::parse("512Mi").unwrap());
        assert_eq!(sum.to_string(), "1536Mi");
        sum.sub(&Quantity::parse("1536Mi").unwrap());
        assert!(sum.is_zero());
        assert!(Quantity::parse("1").unwrap() > Quantity::parse("999m").unwrap());
    }

    proptest::proptest! {
        #[test]
        fn any_text_is_read_or_refused(text in "[-+]?[0-9.]{0,40}[eEinumkKMGTP]{0,3}[-+]?[0-9]{0,12}") {
            if let Ok(quantity) = Quantity::parse(&text) {
                let _ = (quantity.to_string(), quantity.value(), quantity.milli_value());
            }
        }
    }
}
