//! The GGUF reader and writer, against each other and against hand-made bytes.

use ntransformer::gguf::{GgmlType, Gguf, GgufFault, Value, ValueType, Writer};
use quant::TensorType;

/// A file by hand: the header's counts, then whatever the test appends.
struct Raw(Vec<u8>);

impl Raw {
    fn new(version: u32, tensors: u64, entries: u64) -> Self {
        Self(b"GGUF".to_vec()).u32(version).u64(tensors).u64(entries)
    }
    fn u32(self, v: u32) -> Self {
        self.bytes(&v.to_le_bytes())
    }
    fn u64(self, v: u64) -> Self {
        self.bytes(&v.to_le_bytes())
    }
    fn bytes(mut self, v: &[u8]) -> Self {
        self.0.extend_from_slice(v);
        self
    }
    fn str(self, v: &str) -> Self {
        self.u64(v.len() as u64).bytes(v.as_bytes())
    }
    fn tensor(self, name: &str, dims: &[u64], ty: u32, offset: u64) -> Self {
        let head = self.str(name).u32(dims.len() as u32);
        dims.iter().fold(head, |raw, &dim| raw.u64(dim)).u32(ty).u64(offset)
    }
    /// Pads to the alignment of 32, then appends data.
    fn data(mut self, data: &[u8]) -> Self {
        self.0.resize(self.0.len().next_multiple_of(32), 0);
        self.bytes(data)
    }
    fn open(self) -> Result<Gguf, Box<GgufFault>> {
        Gguf::from_vec("raw", self.0).map_err(|error| error.fault)
    }
    fn fault(self) -> GgufFault {
        *self.open().map(|_| ()).expect_err("the file is bad, and was opened")
    }
}

/// A file with every value type, and two tensors.
fn sample() -> Vec<u8> {
    let mut writer = Writer::new();
    let fill = |w: &mut Writer| -> Result<(), GgufFault> {
        w.set("general.architecture", "llama")?;
        w.set("u8", &200u8)?.set("i8", &-3i8)?.set("u16", &60000u16)?.set("i16", &-30000i16)?;
        w.set("u32", &4_000_000_000u32)?.set("i32", &-5i32)?.set("u64", &u64::MAX)?.set("i64", &i64::MIN)?;
        w.set("f32", &1.5f32)?.set("f64", &0.1f64)?.set("yes", &true)?.set("no", &false)?;
        w.set("text", "grüße")?.set("words", &vec!["a", "", "bc"])?.set("floats", &vec![0.5f32, -1.0])?;
        w.set("ints", &vec![1i32, -2, 3])?.set("flags", &vec![true, false])?.set("none", &Vec::<u32>::new())?;
        w.set("nested", &vec![vec![vec!["x"], vec![]], vec![], vec![vec!["y", "z"]]])?;
        w.tensor("token_embd.weight", &[3, 2], TensorType::F32)?;
        w.tensor("blk.0.attn_q.weight", &[64, 1, 2], TensorType::Q8_0)?;
        Ok(())
    };
    fill(&mut writer).unwrap();
    let mut data = writer.begin(Vec::new()).unwrap();
    // The pieces do not end where the tensors do not.
    let embd: Vec<u8> = (1..=6).flat_map(|v| (v as f32).to_le_bytes()).collect();
    data.write(&embd[..5]).unwrap();
    data.write(&embd[5..]).unwrap();
    data.write(&(0..2 * 2 * 34).map(|v| v as u8).collect::<Vec<_>>()).unwrap();
    data.finish().unwrap()
}

#[test]
fn what_is_written_is_read() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("sample.gguf");
    std::fs::write(&path, sample()).unwrap();
    let gguf = Gguf::open(&path).unwrap();
    assert_eq!((gguf.name(), gguf.version()), (path.to_str().unwrap(), 3));

    let m = gguf.metadata();
    assert_eq!(m.len(), 20);
    assert_eq!(m.iter().nth(1), Some(("u8", Value::U8(200))));
    assert_eq!(m.u32("u8").unwrap(), Some(200));
    assert_eq!(m.u32("u32").unwrap(), Some(4_000_000_000));
    assert_eq!(m.u64("u64").unwrap(), Some(u64::MAX));
    assert_eq!(m.get("i8"), Some(Value::I8(-3)));
    assert_eq!(m.get("i16"), Some(Value::I16(-30000)));
    assert_eq!(m.get("i64"), Some(Value::I64(i64::MIN)));
    assert_eq!(m.u32("u16").unwrap(), Some(60000));
    assert_eq!(m.f32("f32").unwrap(), Some(1.5));
    assert_eq!(m.f32("f64").unwrap(), Some(0.1));
    // Some converters store whole numbers as integers.
    assert_eq!((m.f32("u8").unwrap(), m.f32("i32").unwrap()), (Some(200.0), Some(-5.0)));
    assert_eq!((m.bool("yes").unwrap(), m.bool("no").unwrap()), (Some(true), Some(false)));
    assert_eq!(m.str("text").unwrap(), Some("grüße"));
    assert_eq!(m.strings("words").unwrap(), Some(vec!["a", "", "bc"]));
    assert_eq!(m.f32s("floats").unwrap(), Some(vec![0.5, -1.0]));
    assert_eq!(m.i32s("ints").unwrap(), Some(vec![1, -2, 3]));
    assert_eq!(m.u32s("none").unwrap(), Some(vec![]));
    let Some(Value::Array(nested)) = m.get("nested") else { panic!("an array") };
    assert_eq!((nested.len(), nested.elem()), (3, ValueType::Array));
    let leaves: Vec<_> = nested.iter().flat_map(elements).flat_map(elements).collect();
    assert_eq!(leaves, [Value::String(b"x"), Value::String(b"y"), Value::String(b"z")]);
    assert_eq!(m.u32("absent").unwrap(), None);

    let embd = gguf.require("token_embd.weight").unwrap();
    assert_eq!((embd.cols(), embd.rows(), embd.bytes), (3, 2, 24));
    let floats: Vec<f32> = gguf.bytes(embd).chunks(4).map(|b| f32::from_le_bytes(b.try_into().unwrap())).collect();
    assert_eq!(floats, [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]);
    let q = gguf.tensor("blk.0.attn_q.weight").unwrap();
    assert_eq!((q.ty, q.offset, q.bytes, q.rows()), (TensorType::Q8_0.into(), 32, 136, 2));
    assert_eq!(gguf.supported_type(q).unwrap(), TensorType::Q8_0);
    assert_eq!(gguf.bytes(q)[..4], [0, 1, 2, 3]);
    assert_eq!(gguf.tensor_file_offset(q) % 32, 0);
    assert_eq!(
        gguf.tensors().iter().map(|t| t.name.as_str()).collect::<Vec<_>>(),
        ["token_embd.weight", "blk.0.attn_q.weight"]
    );
}

fn elements(value: Value<'_>) -> Vec<Value<'_>> {
    match value {
        Value::Array(array) => array.iter().collect(),
        other => panic!("{other:?} is no array"),
    }
}

#[test]
fn copied_metadata_is_the_same() {
    let original = Gguf::from_vec("original", sample()).unwrap();
    let mut writer = Writer::new();
    for (key, value) in original.metadata().iter() {
        writer.set_value(key, value).unwrap();
    }
    let copy = Gguf::from_vec("copy", writer.begin(Vec::new()).unwrap().finish().unwrap()).unwrap();
    assert!(original.metadata().iter().eq(copy.metadata().iter()));
}

#[test]
fn the_bytes_are_those_of_the_specification() {
    let mut writer = Writer::new();
    writer.set("general.alignment", &64u32).unwrap();
    writer.tensor("a", &[2], TensorType::F16).unwrap();
    writer.tensor("b", &[1], TensorType::F32).unwrap();
    let mut data = writer.begin(Vec::new()).unwrap();
    data.write(&[1, 2, 3, 4]).unwrap();
    data.write(&[5, 6, 7, 8]).unwrap();
    let raw = Raw::new(3, 2, 1).str("general.alignment").u32(4).u32(64);
    let mut raw = raw.tensor("a", &[2], 1, 0).tensor("b", &[1], 0, 64).0;
    raw.resize(raw.len().next_multiple_of(64), 0);
    raw.extend([1, 2, 3, 4]);
    raw.extend([0; 60]);
    raw.extend([5, 6, 7, 8]);
    assert_eq!(data.finish().unwrap(), raw);
    let gguf = Gguf::from_vec("aligned", raw).unwrap();
    assert_eq!(gguf.bytes(gguf.tensor("b").unwrap()), [5, 6, 7, 8]);
}

#[test]
fn the_writer_refuses_what_the_reader_would() {
    let mut writer = Writer::new();
    writer.set("key", &1u32).unwrap();
    assert!(matches!(writer.set("key", &2u32), Err(GgufFault::DuplicateKey(_))));
    assert!(matches!(writer.set("general.alignment", &24u32), Err(GgufFault::Alignment(24))));
    writer.tensor("t", &[4], TensorType::F32).unwrap();
    assert!(matches!(writer.tensor("t", &[4], TensorType::F32), Err(GgufFault::DuplicateTensor(_))));
    assert!(matches!(writer.tensor("u", &[33], TensorType::Q8_0), Err(GgufFault::PartialBlock { .. })));
    let mut data = writer.begin(Vec::new()).unwrap();
    data.write(&[0; 15]).unwrap();
    assert!(data.write(&[0; 2]).unwrap_err().to_string().contains("tensor t: 1 bytes more"));
    assert!(data.finish().unwrap_err().to_string().contains("tensor t"));
}

#[test]
fn wrong_types_are_named() {
    let gguf = Gguf::from_vec("model.gguf", sample()).unwrap();
    let m = gguf.metadata();
    let message = |error: Option<ntransformer::gguf::GgufError>| error.expect("an error").to_string();
    assert_eq!(
        message(m.u32("i32").err()),
        r#"model.gguf: metadata "i32": expected an integer in u32's range, found i32 -5"#
    );
    assert_eq!(
        message(m.u32("text").err()),
        r#"model.gguf: metadata "text": expected an integer in u32's range, found a string"#
    );
    assert_eq!(
        message(m.u32s("ints").err()),
        r#"model.gguf: metadata "ints": expected an array of integers in u32's range, found an array with i32 -2"#
    );
    assert!(message(m.f32("text").err()).contains("expected a number, found a string"));
    assert!(message(m.bool("u8").err()).contains("expected a bool"));
    assert!(message(m.str("words").err()).contains("found an array of string"));
    assert!(message(m.strings("floats").err()).contains("found an array with f32 0.5"));
    assert_eq!(message(m.require_u32("n").err()), r#"model.gguf: has no metadata "n""#);
    assert_eq!(message(gguf.require("output.weight").err()), "model.gguf: has no tensor output.weight");
}

#[test]
fn strings_that_are_not_utf8_are_found_where_they_are_read() {
    let raw = Raw::new(3, 0, 2).str("s").u32(8).u64(1).bytes(&[0xff]);
    let gguf = raw.str("a").u32(9).u32(8).u64(2).str("ok").u64(1).bytes(&[0xc3]).open().unwrap();
    assert_eq!(gguf.metadata().get("s"), Some(Value::String(&[0xff])));
    assert!(gguf.metadata().str("s").is_err());
    let error = gguf.metadata().strings("a").unwrap_err().to_string();
    assert_eq!(error, r#"raw: metadata "a": string 1 is not valid UTF-8"#);
}

#[test]
fn versions_and_byte_orders() {
    assert_eq!(Raw::new(2, 0, 0).open().unwrap().version(), 2);
    assert!(matches!(Raw::new(1, 0, 0).fault(), GgufFault::Version(1)));
    assert!(matches!(Raw::new(4, 0, 0).fault(), GgufFault::Version(4)));
    assert!(matches!(Raw::new(3u32.swap_bytes(), 0, 0).fault(), GgufFault::BigEndian));
    assert!(matches!(Raw(b"GGML....".to_vec()).fault(), GgufFault::NotGguf));
    assert!(matches!(Raw(Vec::new()).fault(), GgufFault::NotGguf));
}

#[test]
fn files_that_cannot_be_read() {
    let dir = tempfile::tempdir().unwrap();
    let error = |path: &std::path::Path| Gguf::open(path).unwrap_err();
    assert!(matches!(*error(dir.path()).fault, GgufFault::NotAFile));
    let missing = error(&dir.path().join("missing.gguf"));
    assert!(matches!(*missing.fault, GgufFault::Io(_)));
    assert!(missing.to_string().contains("missing.gguf: cannot be read: No such file"), "{missing}");
    let empty = dir.path().join("empty.gguf");
    std::fs::write(&empty, []).unwrap();
    assert!(matches!(*error(&empty).fault, GgufFault::NotGguf));
}

#[test]
fn bad_metadata() {
    use GgufFault as F;
    let entry = || Raw::new(3, 0, 1).str("k");
    assert!(matches!(Raw::new(3, 0, u64::MAX).fault(), F::Count { count: u64::MAX, .. }));
    assert!(matches!(entry().u32(13).u64(0).fault(), F::ValueType { ty: 13, .. }));
    assert!(matches!(entry().u32(8).u64(u64::MAX).fault(), F::Truncated { need: u64::MAX, have: 0, .. }));
    assert!(matches!(entry().u32(7).bytes(&[2]).fault(), F::Bool { value: 2, .. }));
    assert!(matches!(entry().u32(9).u32(7).u64(2).bytes(&[1, 9]).fault(), F::Bool { value: 9, .. }));
    // 2^61 u64 elements: the size in bytes would overflow to 0.
    assert!(matches!(entry().u32(9).u32(10).u64(1 << 61).fault(), F::Count { .. }));
    assert!(matches!(entry().u32(9).u32(8).u64(3).str("a").fault(), F::Count { count: 3, .. }));
    assert!(matches!(entry().u32(9).u32(4).u64(2).u32(1).fault(), F::Count { count: 2, .. }));
    let nested = (0..20).fold(entry().u32(9), |raw, _| raw.u32(9).u64(1));
    assert!(matches!(nested.u32(0).u64(0).fault(), F::Nested { .. }));
    let twice = Raw::new(3, 0, 2).str("k").u32(4).u32(1).str("k").u32(4).u32(1);
    assert!(matches!(twice.fault(), F::DuplicateKey(key) if key == "k"));
    let long = "k".repeat(65536);
    assert!(matches!(Raw::new(3, 0, 1).str(&long).u32(0).bytes(&[0]).fault(), F::TooLong { len: 65536, .. }));
    assert!(matches!(Raw::new(3, 0, 1).u64(1).bytes(&[0xff]).u32(0).bytes(&[0]).fault(), F::Utf8 { .. }));
    for alignment in [0, 4, 24, 33] {
        let raw = Raw::new(3, 0, 1).str("general.alignment").u32(4).u32(alignment);
        assert!(matches!(raw.fault(), F::Alignment(a) if a == u64::from(alignment)));
    }
    let raw = Raw::new(3, 0, 1).str("general.alignment").u32(8).str("32");
    assert!(matches!(raw.fault(), F::WrongType { .. }));
}

#[test]
fn bad_tensors() {
    use GgufFault as F;
    let one = |dims: &[u64], ty| Raw::new(3, 1, 0).tensor("t", dims, ty, 0).data(&[0; 64]).fault();
    assert!(matches!(Raw::new(3, 1 << 60, 0).fault(), F::Count { .. }));
    assert!(matches!(one(&[], 0), F::Dimensions { count: 0, .. }));
    assert!(matches!(one(&[1; 5], 0), F::Dimensions { count: 5, .. }));
    assert!(matches!(one(&[4, 0], 0), F::ZeroDimension { index: 1, .. }));
    assert!(matches!(one(&[1 << 32, 1 << 32], 0), F::TensorTooLarge { .. }));
    assert!(matches!(one(&[1 << 62], 0), F::TensorTooLarge { .. }));
    assert!(matches!(one(&[100], 12), F::PartialBlock { cols: 100, block: 256, .. }));
    assert!(matches!(one(&[17], 0), F::TensorTruncated { start: 64, end: 132, len: 128, .. }));
    let twice = Raw::new(3, 2, 0).tensor("t", &[1], 0, 0).tensor("t", &[1], 0, 0).data(&[0; 4]);
    assert!(matches!(twice.fault(), F::DuplicateTensor(_)));
    let off = |offset| Raw::new(3, 1, 0).tensor("t", &[1], 0, offset).data(&[0; 64]).fault();
    assert!(matches!(off(4), F::Misaligned { offset: 4, .. }));
    assert!(matches!(off(64), F::TensorTruncated { .. }));
    assert!(matches!(off(u64::MAX - 31), F::TensorTruncated { .. }));
    let long = "t".repeat(65);
    let raw = Raw::new(3, 1, 0).tensor(&long, &[1], 0, 0).data(&[0; 4]);
    assert!(matches!(raw.fault(), F::TooLong { len: 65, max: 64, .. }));
    // The message names the tensor and both sizes.
    let text = one(&[17], 0).to_string();
    assert_eq!(text, "truncated: tensor t needs bytes 64..132, the file has 128: get it again");
}

#[test]
fn other_types_are_listed_but_not_computed_with() {
    let raw = Raw::new(3, 3, 0).tensor("a", &[32], 9, 0).tensor("b", &[7], 999, 64);
    let gguf = raw.tensor("c", &[1], 0, 128).data(&[0; 132]).open().unwrap();
    let a = gguf.tensor("a").unwrap();
    assert_eq!((a.ty, a.bytes, a.ty.to_string().as_str()), (GgmlType::Other(9), 40, "Q8_1"));
    let b = gguf.tensor("b").unwrap();
    assert_eq!((b.bytes, b.ty.to_string().as_str()), (64, "type 999"));
    assert_eq!(
        gguf.supported_type(a).unwrap_err().to_string(),
        "raw: tensor a has the type Q8_1, which is not supported \
         (supported: F32 F16 BF16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2_K Q3_K Q4_K Q5_K Q6_K IQ4_NL IQ4_XS)"
    );
}
