//! The pickle of a PyTorch checkpoint, read without running anything.
//!
//! A pickle is a program for a small machine that may import and call whatever Python can. Only what a flat dictionary of
//! tensors needs is carried out here; any other instruction and any other import is an error that names it. Values lie in
//! flat tables, so nothing a pickle says makes this recurse or copy more than it is long.

use std::collections::HashMap;

use wmtp_model::Element;

/// Longer pickles describe no weights: each tensor takes some hundred bytes.
pub(crate) const MAX_PICKLE: u64 = 64 << 20;

/// No weight of any model has a longer name.
const MAX_NAME: usize = 256;

/// Why a pickle is refused.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Refusal {
    /// It imports something that could run code.
    #[error("the pickle asks for {0}, which could run code; only tensors are read")]
    Code(String),
    /// It has an instruction that tensors do not need.
    #[error("the pickle has instruction {op:#04x} at byte {at}, which tensors do not need")]
    Instruction { op: u8, at: usize },
    /// It ends early or contradicts itself.
    #[error("the pickle is malformed at byte {at}: {what}")]
    Malformed { what: &'static str, at: usize },
    /// It holds no flat dictionary of tensors.
    #[error("the pickle holds {0}, not a dictionary of tensors by name")]
    Shape(&'static str),
}

/// Where a tensor's elements lie.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct StoredTensor {
    pub(crate) element: Element,
    /// Name of the storage inside the archive.
    pub(crate) storage: String,
    /// Elements of the storage.
    pub(crate) storage_elements: u64,
    /// First element.
    pub(crate) offset: u64,
    pub(crate) shape: Vec<u64>,
    pub(crate) strides: Vec<u64>,
}

/// What may be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Global {
    OrderedDict,
    RebuildTensor,
    RebuildParameter,
    Storage(Element),
}

impl Global {
    fn of(module: &str, name: &str) -> Option<Self> {
        Some(match (module, name) {
            ("collections", "OrderedDict") => Self::OrderedDict,
            ("torch._utils", "_rebuild_tensor_v2") => Self::RebuildTensor,
            ("torch._utils", "_rebuild_parameter") => Self::RebuildParameter,
            ("torch", "HalfStorage") => Self::Storage(Element::F16),
            ("torch", "BFloat16Storage") => Self::Storage(Element::Bf16),
            ("torch", "FloatStorage") => Self::Storage(Element::F32),
            ("torch", "DoubleStorage") => Self::Storage(Element::F64),
            _ => return None,
        })
    }
}

/// A value; what is larger than a word lies in a table.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Value {
    Nothing,
    Bool,
    Int(i64),
    Float,
    Text(usize),
    Tuple(usize),
    Dict(usize),
    Global(Global),
    Storage(usize),
    Tensor(usize),
    Mark,
}

/// The machine.
struct Machine<'a> {
    code: &'a [u8],
    at: usize,
    stack: Vec<Value>,
    memo: HashMap<u32, Value>,
    texts: Vec<&'a str>,
    tuples: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    storages: Vec<(Element, usize, u64)>,
    tensors: Vec<StoredTensor>,
}

/// Reads a pickle that holds a dictionary of tensors.
pub(crate) fn tensors(pickle: &[u8]) -> Result<Vec<(String, StoredTensor)>, Refusal> {
    let mut machine = Machine {
        code: pickle,
        at: 0,
        stack: Vec::new(),
        memo: HashMap::new(),
        texts: Vec::new(),
        tuples: Vec::new(),
        dicts: Vec::new(),
        storages: Vec::new(),
        tensors: Vec::new(),
    };
    while machine.step()? {}
    machine.result()
}

impl<'a> Machine<'a> {
    /// Carries out one instruction; false at the end of the program.
    fn step(&mut self) -> Result<bool, Refusal> {
        let begin = self.at;
        let [op] = self.take()?;
        match op {
            0x80 => self.protocol()?,
            b'c' => self.import()?,
            b'q' => {
                let [slot] = self.take()?;
                self.remember(u32::from(slot))?;
            }
            b'r' => {
                let slot = u32::from_le_bytes(self.take()?);
                self.remember(slot)?;
            }
            b'h' => {
                let [slot] = self.take()?;
                self.recall(u32::from(slot))?;
            }
            b'j' => {
                let slot = u32::from_le_bytes(self.take()?);
                self.recall(slot)?;
            }
            b'(' => self.stack.push(Value::Mark),
            b')' => self.push_tuple(Vec::new()),
            b't' => {
                let items = self.since_mark()?;
                self.push_tuple(items);
            }
            0x85..=0x87 => {
                let count = usize::from(op - 0x84);
                let start = self.stack.len().checked_sub(count);
                let start = start.ok_or_else(|| self.malformed("a tuple of more than there is"))?;
                let items = self.stack.split_off(start);
                self.push_tuple(items);
            }
            b'}' => self.push_dict(),
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.insert(vec![key, value])?;
            }
            b'u' => {
                let items = self.since_mark()?;
                self.insert(items)?;
            }
            b'X' => self.text()?,
            b'J' => {
                let number = i32::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(number.into()));
            }
            b'K' => {
                let [number] = self.take()?;
                self.stack.push(Value::Int(number.into()));
            }
            b'M' => {
                let number = u16::from_le_bytes(self.take()?);
                self.stack.push(Value::Int(number.into()));
            }
            0x8a => self.long()?,
            b'G' => {
                self.take::<8>()?;
                self.stack.push(Value::Float);
            }
            0x88 | 0x89 => self.stack.push(Value::Bool),
            b'N' => self.stack.push(Value::Nothing),
            b'Q' => self.storage()?,
            b'R' => self.call()?,
            b'b' => self.attributes()?,
            b'.' => return Ok(false),
            _ => return Err(Refusal::Instruction { op, at: begin }),
        }
        Ok(true)
    }

    fn malformed(&self, what: &'static str) -> Refusal {
        Refusal::Malformed { what, at: self.at }
    }

    fn take<const N: usize>(&mut self) -> Result<[u8; N], Refusal> {
        let bytes = self.bytes(N)?;
        let mut taken = [0; N];
        taken.copy_from_slice(bytes);
        Ok(taken)
    }

    fn bytes(&mut self, length: usize) -> Result<&'a [u8], Refusal> {
        let code: &'a [u8] = self.code;
        let end = self.at.checked_add(length).filter(|end| *end <= code.len());
        let end = end.ok_or_else(|| self.malformed("it ends early"))?;
        let bytes = &code[self.at..end];
        self.at = end;
        Ok(bytes)
    }

    fn line(&mut self) -> Result<&'a str, Refusal> {
        let code: &'a [u8] = self.code;
        let length = code[self.at..].iter().position(|byte| *byte == b'\n');
        let length = length.ok_or_else(|| self.malformed("it ends early"))?;
        let line = self.bytes(length)?;
        self.at += 1;
        std::str::from_utf8(line).map_err(|_| self.malformed("a name that is not UTF-8"))
    }

    fn protocol(&mut self) -> Result<(), Refusal> {
        match self.take()? {
            [2..=5] => Ok(()),
            _ => Err(self.malformed("an unknown protocol")),
        }
    }

    fn import(&mut self) -> Result<(), Refusal> {
        let (module, name) = (self.line()?, self.line()?);
        let global = Global::of(module, name);
        let global = global.ok_or_else(|| Refusal::Code(format!("{module}.{name}")))?;
        self.stack.push(Value::Global(global));
        Ok(())
    }

    fn remember(&mut self, slot: u32) -> Result<(), Refusal> {
        let top = self.stack.last().copied();
        let top = top.ok_or_else(|| self.malformed("nothing to remember"))?;
        self.memo.insert(slot, top);
        Ok(())
    }

    fn recall(&mut self, slot: u32) -> Result<(), Refusal> {
        let value = self.memo.get(&slot).copied();
        let value = value.ok_or_else(|| self.malformed("nothing was remembered there"))?;
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Result<Value, Refusal> {
        let top = self.stack.pop();
        top.filter(|value| *value != Value::Mark)
            .ok_or_else(|| self.malformed("a value is missing"))
    }

    fn since_mark(&mut self) -> Result<Vec<Value>, Refusal> {
        let mark = self.stack.iter().rposition(|value| *value == Value::Mark);
        let mark = mark.ok_or_else(|| self.malformed("a mark is missing"))?;
        let items = self.stack.split_off(mark + 1);
        self.stack.pop();
        Ok(items)
    }

    fn push_tuple(&mut self, items: Vec<Value>) {
        self.stack.push(Value::Tuple(self.tuples.len()));
        self.tuples.push(items);
    }

    fn push_dict(&mut self) {
        self.stack.push(Value::Dict(self.dicts.len()));
        self.dicts.push(Vec::new());
    }

    /// Puts keys and values, in turns, into the dictionary on top.
    fn insert(&mut self, items: Vec<Value>) -> Result<(), Refusal> {
        let Some(&Value::Dict(dict)) = self.stack.last() else {
            return Err(self.malformed("entries without a dictionary"));
        };
        if !items.len().is_multiple_of(2) {
            return Err(self.malformed("a key without a value"));
        }
        let pairs = items.chunks_exact(2).map(|pair| (pair[0], pair[1]));
        self.dicts[dict].extend(pairs);
        Ok(())
    }

    fn text(&mut self) -> Result<(), Refusal> {
        let length = u32::from_le_bytes(self.take()?);
        let bytes = self.bytes(length as usize)?;
        let text =
            std::str::from_utf8(bytes).map_err(|_| self.malformed("text that is not UTF-8"))?;
        self.stack.push(Value::Text(self.texts.len()));
        self.texts.push(text);
        Ok(())
    }

    fn long(&mut self) -> Result<(), Refusal> {
        let [length] = self.take()?;
        let bytes = self.bytes(usize::from(length))?;
        if bytes.len() > 8 {
            return Err(self.malformed("a number beyond 64 bits"));
        }
        let negative = bytes.last().is_some_and(|byte| byte & 0x80 != 0);
        let mut word = [if negative { 0xff } else { 0 }; 8];
        word[..bytes.len()].copy_from_slice(bytes);
        self.stack.push(Value::Int(i64::from_le_bytes(word)));
        Ok(())
    }

    /// A reference to data outside of the pickle: `("storage", type, name, place, elements)`.
    fn storage(&mut self) -> Result<(), Refusal> {
        let items = self.pop_tuple()?;
        let &[
            Value::Text(word),
            Value::Global(Global::Storage(element)),
            Value::Text(name),
            _,
            Value::Int(count),
        ] = items.as_slice()
        else {
            return Err(self.malformed("a reference to something that is no storage"));
        };
        if self.texts[word] != "storage" {
            return Err(self.malformed("a reference to something that is no storage"));
        }
        let count = self.size(count)?;
        self.stack.push(Value::Storage(self.storages.len()));
        self.storages.push((element, name, count));
        Ok(())
    }

    fn pop_tuple(&mut self) -> Result<Vec<Value>, Refusal> {
        match self.pop()? {
            // Taken by copy: a tuple may have been remembered, and is short where it counts.
            Value::Tuple(tuple) if self.tuples[tuple].len() <= 8 => Ok(self.tuples[tuple].clone()),
            _ => Err(self.malformed("a short tuple is missing")),
        }
    }

    /// Calls one of the functions that may be imported.
    fn call(&mut self) -> Result<(), Refusal> {
        let arguments = self.pop_tuple()?;
        let Value::Global(function) = self.pop()? else {
            return Err(self.malformed("a call of something that is no function"));
        };
        match (function, arguments.as_slice()) {
            (Global::OrderedDict, []) => self.push_dict(),
            (Global::RebuildParameter, [Value::Tensor(tensor), ..]) => {
                self.stack.push(Value::Tensor(*tensor));
            }
            (
                Global::RebuildTensor,
                [
                    Value::Storage(storage),
                    Value::Int(offset),
                    Value::Tuple(shape),
                    Value::Tuple(strides),
                    ..,
                ],
            ) => {
                let (element, name, count) = self.storages[*storage];
                let is_name =
                    |text: &str| text.len() <= 20 && text.bytes().all(|byte| byte.is_ascii_digit());
                if !is_name(self.texts[name]) {
                    return Err(self.malformed("a storage whose name is no number"));
                }
                let tensor = StoredTensor {
                    element,
                    storage: self.texts[name].to_owned(),
                    storage_elements: count,
                    offset: self.size(*offset)?,
                    shape: self.sizes(*shape)?,
                    strides: self.sizes(*strides)?,
                };
                self.stack.push(Value::Tensor(self.tensors.len()));
                self.tensors.push(tensor);
            }
            _ => return Err(self.malformed("a call with other arguments than tensors have")),
        }
        Ok(())
    }

    fn sizes(&self, tuple: usize) -> Result<Vec<u64>, Refusal> {
        let items = &self.tuples[tuple];
        if items.len() > 8 {
            return Err(self.malformed("a tensor of more than 8 dimensions"));
        }
        let size = |item: &Value| match item {
            Value::Int(number) => self.size(*number),
            _ => Err(self.malformed("a size that is no number")),
        };
        items.iter().map(size).collect()
    }

    fn size(&self, number: i64) -> Result<u64, Refusal> {
        u64::try_from(number).map_err(|_| self.malformed("a negative size"))
    }

    /// Attributes of a dictionary, such as the versions of a module's layers: nothing that weights need.
    fn attributes(&mut self) -> Result<(), Refusal> {
        self.pop()?;
        match self.stack.last() {
            Some(Value::Dict(_)) => Ok(()),
            _ => Err(self.malformed("attributes of something that is no dictionary")),
        }
    }

    fn result(mut self) -> Result<Vec<(String, StoredTensor)>, Refusal> {
        let Value::Dict(dict) = self.pop()? else {
            return Err(Refusal::Shape("something else"));
        };
        let mut named = Vec::new();
        for (key, value) in &self.dicts[dict] {
            let Value::Text(name) = key else {
                return Err(Refusal::Shape("an entry whose name is no text"));
            };
            let Value::Tensor(tensor) = value else {
                return Err(Refusal::Shape("an entry that is no tensor"));
            };
            if self.texts[*name].len() > MAX_NAME {
                return Err(Refusal::Shape("a name of more than 256 bytes"));
            }
            named.push((self.texts[*name].to_owned(), self.tensors[*tensor].clone()));
        }
        Ok(named)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The pickle that torch.save writes of a dictionary with one tensor.
    fn torch_pickle() -> Vec<u8> {
        let mut code = b"\x80\x02}q\x00X\x01\x00\x00\x00wq\x01ctorch._utils\n_rebuild_tensor_v2\nq\x02((X\x07\x00\x00\x00storage".to_vec();
        code.extend(b"q\x03ctorch\nHalfStorage\nq\x04X\x01\x00\x00\x000q\x05X\x03\x00\x00\x00cpuq\x06K\x0ctq\x07QK\x00K\x03K\x04\x86q\x08");
        code.extend(
            b"K\x04K\x01\x86q\x09\x89ccollections\nOrderedDict\nq\x0a)Rq\x0btq\x0cRq\x0ds.",
        );
        code
    }

    #[test]
    fn a_tensor_is_found_with_its_place() {
        let expected = StoredTensor {
            element: Element::F16,
            storage: "0".to_owned(),
            storage_elements: 12,
            offset: 0,
            shape: vec![3, 4],
            strides: vec![4, 1],
        };
        assert_eq!(
            tensors(&torch_pickle()).unwrap(),
            [("w".to_owned(), expected)]
        );
    }

    #[test]
    fn every_truncation_is_refused() {
        let code = torch_pickle();
        for end in 0..code.len() {
            assert!(tensors(&code[..end]).is_err(), "{end}");
        }
    }

    /// A memo that doubles a thousand times would fill any memory if recalling copied.
    #[test]
    fn what_is_remembered_is_not_copied() {
        let mut code = b"\x80\x02)q\x00".to_vec();
        for _ in 0..1_000 {
            code.extend(b"h\x00h\x00\x86q\x00");
        }
        code.push(b'.');
        assert_eq!(tensors(&code), Err(Refusal::Shape("something else")));
    }

    proptest! {
        #[test]
        fn whatever_the_bytes_are_reading_ends(
            changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
            tail in proptest::collection::vec(any::<u8>(), 0..40),
        ) {
            let mut code = torch_pickle();
            for (index, byte) in changes {
                let place = index.index(code.len());
                code[place] = byte;
            }
            let _ = tensors(&code);
            let _ = tensors(&tail);
        }
    }

    #[test]
    fn no_pickle_makes_the_reader_fail() {
        let corpus = "tests/corpus/pickle";
        fuzzing::run(corpus.as_ref(), |bytes| match tensors(bytes) {
            Ok(tensors) => format!("{} tensors", tensors.len()),
            Err(refusal) => refusal.to_string(),
        });
    }
}
