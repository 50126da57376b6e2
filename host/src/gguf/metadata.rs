//! The metadata of a file, by key, with typed access.

use super::{GgufError, GgufFault, Part, Value, ValueType, cursor::Cursor};
use std::{
    collections::{HashMap, hash_map},
    ops::Range,
    sync::Arc,
};

/// The keys and values of a GGUF file, in file order.
///
/// Only keys and positions are held; values are decoded from the file's bytes when asked for, so a file with a
/// vocabulary of 100 000 tokens opens without delay.
#[derive(Debug)]
pub struct Metadata {
    part: Arc<Part>,
    entries: Entries,
}

/// Metadata entries in file order, and by key.
#[derive(Debug, Default)]
pub(super) struct Entries {
    list: Vec<Entry>,
    index: HashMap<String, usize>,
}

impl Entries {
    pub(super) fn push(&mut self, entry: Entry) -> Result<(), GgufFault> {
        match self.index.entry(entry.key.clone()) {
            hash_map::Entry::Vacant(vacant) => vacant.insert(self.list.len()),
            hash_map::Entry::Occupied(_) => return Err(GgufFault::DuplicateKey(entry.key)),
        };
        self.list.push(entry);
        Ok(())
    }
}

/// A value's key, type, and place in the file.
#[derive(Debug)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) ty: ValueType,
    pub(super) range: Range<usize>,
}

impl Metadata {
    pub(super) fn new(part: Arc<Part>, entries: Entries) -> Self {
        Self { part, entries }
    }

    /// The number of keys.
    pub fn len(&self) -> usize {
        self.entries.list.len()
    }

    /// Whether there are no keys.
    pub fn is_empty(&self) -> bool {
        self.entries.list.is_empty()
    }

    /// Keys and values in file order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, Value<'_>)> {
        self.entries.list.iter().filter_map(|entry| Some((entry.key.as_str(), self.value(entry)?)))
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<Value<'_>> {
        self.value(&self.entries.list[*self.entries.index.get(key)?])
    }

    /// Always there: each entry was read when the file was opened.
    fn value(&self, entry: &Entry) -> Option<Value<'_>> {
        let bytes = self.part.bytes().get(entry.range.clone())?;
        Value::read(&mut Cursor::new(bytes), entry.ty).ok()
    }

    pub(super) fn error(&self, fault: GgufFault) -> GgufError {
        self.part.error(fault)
    }

    /// The value of `key` as `convert` sees it; an error that says what was `expected` where it sees none.
    fn typed<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl FnOnce(Value<'a>) -> Option<T>,
    ) -> Result<Option<T>, GgufError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let wrong = || GgufFault::WrongType { key: key.to_owned(), expected, found: value.describe() };
        convert(value).map(Some).ok_or_else(|| self.error(wrong()))
    }

    /// The elements of the array `key`, as [`Self::typed`].
    fn typed_array<'a, T>(
        &'a self,
        key: &str,
        expected: &'static str,
        convert: impl Fn(Value<'a>) -> Option<T>,
    ) -> Result<Option<Vec<T>>, GgufError> {
        let array = self.typed(key, expected, |value| match value {
            Value::Array(array) => Some(array),
            _ => None,
        })?;
        let Some(array) = array else { return Ok(None) };
        let wrong = |value: Value<'a>| {
            let found = format!("an array with {}", value.describe());
            self.error(GgufFault::WrongType { key: key.to_owned(), expected, found })
        };
        array.iter().map(|value| convert(value).ok_or_else(|| wrong(value))).collect::<Result<_, _>>().map(Some)
    }

    fn required<T>(&self, key: &str, value: Option<T>) -> Result<T, GgufError> {
        value.ok_or_else(|| self.error(GgufFault::NoKey(key.to_owned())))
    }

    /// The integer `key`, of any width and signedness in the file; `None` if the key is absent, an error if the value is
    /// no integer or does not fit.
    pub fn u32(&self, key: &str) -> Result<Option<u32>, GgufError> {
        self.typed(key, "an integer in u32's range", |value| u32::try_from(value.integer()?).ok())
    }

    /// As [`Self::u32`], and an error if the key is absent.
    pub fn require_u32(&self, key: &str) -> Result<u32, GgufError> {
        self.required(key, self.u32(key)?)
    }

    /// The integer `key`, as [`Self::u32`].
    pub fn u64(&self, key: &str) -> Result<Option<u64>, GgufError> {
        self.typed(key, "an integer in u64's range", |value| u64::try_from(value.integer()?).ok())
    }

    /// The number `key`, a float or an integer of any width in the file; `None` if the key is absent, an error if the value
    /// is no number.
    pub fn f32(&self, key: &str) -> Result<Option<f32>, GgufError> {
        self.typed(key, "a number", |value| value.float().or_else(|| value.integer().map(|v| v as f32)))
    }

    /// As [`Self::f32`], and an error if the key is absent.
    pub fn require_f32(&self, key: &str) -> Result<f32, GgufError> {
        self.required(key, self.f32(key)?)
    }

    /// The boolean `key`; `None` if the key is absent, an error if the value is no boolean.
    pub fn bool(&self, key: &str) -> Result<Option<bool>, GgufError> {
        self.typed(key, "a bool", |value| match value {
            Value::Bool(v) => Some(v),
            _ => None,
        })
    }

    /// The string `key`; `None` if the key is absent, an error if the value is no string or not UTF-8.
    pub fn str(&self, key: &str) -> Result<Option<&str>, GgufError> {
        self.typed(key, "a UTF-8 string", |value| match value {
            Value::String(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        })
    }

    /// As [`Self::str`], and an error if the key is absent.
    pub fn require_str(&self, key: &str) -> Result<&str, GgufError> {
        self.required(key, self.str(key)?)
    }

    /// The array of strings `key`; `None` if the key is absent, an error if the value is something else or a string is
    /// not UTF-8.
    pub fn strings(&self, key: &str) -> Result<Option<Vec<&str>>, GgufError> {
        let strings = self.typed_array(key, "an array of strings", |value| match value {
            Value::String(bytes) => Some(bytes),
            _ => None,
        })?;
        let text = |(index, bytes)| {
            std::str::from_utf8(bytes).map_err(|_| self.error(GgufFault::StringUtf8 { key: key.to_owned(), index }))
        };
        strings.map(|strings| strings.into_iter().enumerate().map(text).collect()).transpose()
    }

    /// The array of floats `key`, of either width; `None` if the key is absent, an error if the value is something else.
    pub fn f32s(&self, key: &str) -> Result<Option<Vec<f32>>, GgufError> {
        self.typed_array(key, "an array of floats", |value| value.float())
    }

    /// The array of integers `key`, of any width; `None` if the key is absent, an error if the value is something else or
    /// one does not fit.
    pub fn i32s(&self, key: &str) -> Result<Option<Vec<i32>>, GgufError> {
        self.typed_array(key, "an array of integers in i32's range", |value| i32::try_from(value.integer()?).ok())
    }

    /// The array of integers `key`, as [`Self::i32s`].
    pub fn u32s(&self, key: &str) -> Result<Option<Vec<u32>>, GgufError> {
        self.typed_array(key, "an array of integers in u32's range", |value| u32::try_from(value.integer()?).ok())
    }
}
