//! Stored objects as trees in which what each manager owns stays JSON text: it is half of an object, and nobody
//! but the noting of owners looks inside.

use std::fmt;
use std::fmt::Write as _;

use serde::de::{DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use crate::Error;

/// Where the text lies. Lists on the way are gone through.
const OWNED: &[&str] = &["metadata", "managedFields", "fieldsV1"];

/// Reads a stored object. See [`super::open_owners`] for the way to the usual form.
pub fn read(json: &[u8]) -> Result<Value, Error> {
    let mut deserializer = serde_json::Deserializer::from_slice(json);
    let tree = Kept(OWNED).deserialize(&mut deserializer);
    let tree = tree.and_then(|tree| deserializer.end().map(|()| tree));
    tree.map_err(|error| Error::Syntax(error.to_string()))
}

/// Reads an object as its compact JSON.
pub(crate) fn text_of_map<'de, A: MapAccess<'de>>(access: A) -> Result<Value, A::Error> {
    let mut text = String::with_capacity(1024);
    Text(&mut text).visit_map(access)?;
    Ok(text.into())
}

/// A value below which text lies at a path; at the end of the path, the value is the text.
#[derive(Clone, Copy)]
struct Kept(&'static [&'static str]);

impl<'de> DeserializeSeed<'de> for Kept {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        if !self.0.is_empty() {
            return deserializer.deserialize_any(self);
        }
        let mut text = String::with_capacity(1024);
        Text(&mut text).deserialize(deserializer)?;
        Ok(text.into())
    }
}

impl<'de> Visitor<'de> for Kept {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        while let Some(item) = access.next_element_seed(self)? {
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut access: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some(key) = access.next_key::<String>()? {
            let value = match self.0.split_first() {
                Some((next, rest)) if *next == key => access.next_value_seed(Kept(rest))?,
                _ => access.next_value()?,
            };
            map.insert(key, value);
        }
        Ok(Value::Object(map))
    }
}

/// Writes what it reads as compact JSON.
struct Text<'o>(&'o mut String);

impl Text<'_> {
    fn string(&mut self, text: &str) {
        match text.bytes().any(|byte| byte < b' ' || byte == b'"' || byte == b'\\') {
            true => self.scalar(&Value::from(text)),
            false => {
                self.0.push('"');
                self.0.push_str(text);
                self.0.push('"');
            }
        }
    }

    fn scalar(&mut self, value: &Value) {
        write!(self.0, "{value}").expect("writing to a String cannot fail");
    }
}

impl<'de> DeserializeSeed<'de> for Text<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Text<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON value")
    }

    fn visit_bool<E>(mut self, value: bool) -> Result<(), E> {
        self.scalar(&value.into());
        Ok(())
    }

    fn visit_i64<E>(mut self, value: i64) -> Result<(), E> {
        self.scalar(&value.into());
        Ok(())
    }

    fn visit_u64<E>(mut self, value: u64) -> Result<(), E> {
        self.scalar(&value.into());
        Ok(())
    }

    fn visit_f64<E>(mut self, value: f64) -> Result<(), E> {
        self.scalar(&value.into());
        Ok(())
    }

    fn visit_str<E>(mut self, value: &str) -> Result<(), E> {
        self.string(value);
        Ok(())
    }

    fn visit_unit<E>(mut self) -> Result<(), E> {
        self.scalar(&Value::Null);
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<(), A::Error> {
        self.0.push('[');
        while access.next_element_seed(Text(self.0))?.is_some() {
            self.0.push(',');
        }
        close(self.0, '[', ']');
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut access: A) -> Result<(), A::Error> {
        self.0.push('{');
        while access.next_key_seed(Key(&mut self))?.is_some() {
            self.0.push(':');
            access.next_value_seed(Text(self.0))?;
            self.0.push(',');
        }
        close(self.0, '{', '}');
        Ok(())
    }
}

/// Ends a list or a map, in the place of the comma behind its last item.
fn close(out: &mut String, opened: char, closed: char) {
    if !out.ends_with(opened) {
        out.pop();
    }
    out.push(closed);
}

/// The key of a map.
struct Key<'t, 'o>(&'t mut Text<'o>);

impl<'de> DeserializeSeed<'de> for Key<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_str(self)
    }
}

impl Visitor<'_> for Key<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a name")
    }

    fn visit_str<E>(self, name: &str) -> Result<(), E> {
        self.0.string(name);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::apply::open_owners;

    #[test]
    fn owners_stay_text_until_they_are_opened() {
        let owners =
            json!({"f:a": {}, "k:{\"n\":\"\\u0001x\"}": {".": {}, "f:l": [1, -2, 1.5, true, null, [], {}]}});
        let object = json!({"fieldsV1": {"f:b": {}}, "metadata": {"name": "n", "managedFields": [
            {"manager": "m", "fieldsV1": owners}, {"manager": "none"}]}});
        let mut read = read(object.to_string().as_bytes()).unwrap();
        let text = read["metadata"]["managedFields"][0]["fieldsV1"].as_str().unwrap();
        assert_eq!(text, owners.to_string());
        assert_eq!(read["fieldsV1"], object["fieldsV1"], "only those of managedFields are owners");
        open_owners(&mut read);
        assert_eq!(read, object);
    }

    #[test]
    fn what_is_no_json_is_refused() {
        for bad in ["", "{", "{} {}", r#"{"metadata":{"managedFields":[{"fieldsV1":}]}}"#] {
            assert!(read(bad.as_bytes()).is_err(), "{bad}");
        }
    }
}
