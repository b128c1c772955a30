//! A pickle machine that builds data and calls nothing.
//!
//! Python's pickle is a program for a stack machine that may call any function. This one knows the opcodes that
//! `torch.save` writes (protocols 2 to 5), and hands the few that name, call or fetch something to [`Objects`], which knows
//! the functions of `torch` by name and refuses all others. Values are numbers in an arena, so a program can be neither
//! deep nor cyclic in memory, and it makes a bounded number of them.
#![forbid(unsafe_code)]

use std::ops::Range;

use super::objects::{Global, Objects};
use super::opcodes::refused_name;
use super::reader::{Reader, Span};

/// Values that a program may make; a model of 50000 tensors makes some 2 million.
const MAX_VALUES: usize = 1 << 22;
/// Longest text that is kept: more is no name and no key, and a program could ask for it again and again.
const MAX_TEXT: usize = 1024;
/// One value. Containers are indices into [`Machine`], tensors and storages into [`Objects`].
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits: its bytes, little endian.
    Long(Span),
    Text(Span),
    /// A number, bytes or a long text, of which no tensor is made.
    Other,
    Global(Global),
    Tuple(u32),
    List(u32),
    Dict(u32),
    Storage(u32),
    Tensor(u32),
}

/// The machine after its program has run.
#[derive(Debug)]
pub(super) struct Machine<'a> {
    input: Reader<'a>,
    stack: Vec<Value>,
    /// Heights of the stack at the marks that are open.
    marks: Vec<usize>,
    memo: Vec<Option<Value>>,
    num_values: usize,
    /// All items of all tuples, and where each tuple's stand.
    tuple_items: Vec<Value>,
    tuples: Vec<Range<usize>>,
    lists: Vec<Vec<Value>>,
    dicts: Vec<Vec<(Value, Value)>>,
    pub objects: Objects,
}

impl<'a> Machine<'a> {
    /// Runs the pickle that `program` begins with. Returns the machine, what the pickle made, and its length.
    pub fn run(program: &'a [u8]) -> Result<(Self, Value, usize), String> {
        let mut machine = Machine {
            input: Reader::new(program),
            stack: Vec::new(),
            marks: Vec::new(),
            memo: Vec::new(),
            num_values: 0,
            tuple_items: Vec::new(),
            tuples: Vec::new(),
            lists: Vec::new(),
            dicts: Vec::new(),
            objects: Objects::default(),
        };
        loop {
            let opcode = machine.input.byte()?;
            if opcode == b'.' {
                let made = machine.pop()?;
                let len = machine.input.position();
                return Ok((machine, made, len));
            }
            machine.step(opcode)?;
        }
    }

    /// The text at `span`.
    pub fn text(&self, span: Span) -> &'a str {
        // Whoever made the value has checked it.
        std::str::from_utf8(self.bytes(span)).unwrap_or_default()
    }

    /// The bytes at `span`.
    pub fn bytes(&self, span: Span) -> &'a [u8] {
        self.input.bytes(span)
    }

    /// The items of a tuple.
    pub fn tuple(&self, tuple: u32) -> &[Value] {
        &self.tuple_items[self.tuples[tuple as usize].clone()]
    }

    /// The items of a list.
    pub fn list(&self, list: u32) -> &[Value] {
        &self.lists[list as usize]
    }

    /// The pairs of a dictionary, in order.
    pub fn pairs(&self, dict: u32) -> &[(Value, Value)] {
        &self.dicts[dict as usize]
    }

    fn step(&mut self, opcode: u8) -> Result<(), String> {
        match opcode {
            // PROTO, FRAME: how to read on, which this machine knows already.
            0x80 => match self.input.byte()? {
                2..=5 => Ok(()),
                other => Err(format!("its pickle protocol {other} is not one of 2 to 5")),
            },
            0x95 => self.input.take(8).map(drop),
            // MARK, and what empties it: TUPLE, APPENDS, SETITEMS.
            b'(' => {
                self.count()?;
                self.marks.push(self.stack.len());
                Ok(())
            }
            b't' => {
                let mark = self.pop_mark()?;
                self.push_tuple(mark)
            }
            b'e' => {
                let items = self.take_marked()?;
                let list = self.top_list()?;
                self.lists[list].extend(items);
                Ok(())
            }
            b'u' => {
                let items = self.take_marked()?;
                let (pairs, []) = items.as_chunks::<2>() else {
                    return Err("its pickle sets a key without a value".into());
                };
                let dict = self.top_dict("SETITEMS")?;
                self.dicts[dict].extend(pairs.iter().map(|&[key, value]| (key, value)));
                Ok(())
            }
            // APPEND, SETITEM.
            b'a' => {
                let item = self.pop()?;
                let list = self.top_list()?;
                self.lists[list].push(item);
                Ok(())
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                let dict = self.top_dict("SETITEM")?;
                self.dicts[dict].push((key, value));
                Ok(())
            }
            // Constants: NONE, NEWTRUE, NEWFALSE, BININT1, BININT2, BININT, LONG1, LONG4, BINFLOAT.
            b'N' => self.push(Value::None),
            0x88 => self.push(Value::Bool(true)),
            0x89 => self.push(Value::Bool(false)),
            b'K' => {
                let value = self.input.byte()?;
                self.push(Value::Int(value.into()))
            }
            b'M' => {
                let value = self.input.length(2)?;
                self.push(Value::Int(value as i64))
            }
            b'J' => {
                let value = self.input.length(4)? as u32 as i32;
                self.push(Value::Int(value.into()))
            }
            0x8A => self.long(1),
            0x8B => self.long(4),
            b'G' => {
                self.input.take(8)?;
                self.push(Value::Other)
            }
            // Text: SHORT_BINUNICODE, BINUNICODE, BINUNICODE8, and Python 2's SHORT_BINSTRING, BINSTRING.
            0x8C | b'U' => self.push_text(1),
            b'X' | b'T' => self.push_text(4),
            0x8D => self.push_text(8),
            // Bytes: SHORT_BINBYTES, BINBYTES, BINBYTES8.
            b'C' => self.skip_bytes(1),
            b'B' => self.skip_bytes(4),
            0x8E => self.skip_bytes(8),
            // Containers: EMPTY_TUPLE, TUPLE1 to TUPLE3, EMPTY_LIST, EMPTY_DICT.
            b')' => self.push_tuple(self.stack.len()),
            0x85..=0x87 => {
                let len = usize::from(opcode - 0x84);
                let start = self.height_above_mark(len)?;
                self.push_tuple(start)
            }
            b']' => {
                self.lists.push(Vec::new());
                self.push(Value::List(self.lists.len() as u32 - 1))
            }
            b'}' => self.push_dict(),
            // Memo: BINPUT, LONG_BINPUT, MEMOIZE, BINGET, LONG_BINGET.
            b'q' => {
                let index = self.input.length(1)?;
                self.remember(index)
            }
            b'r' => {
                let index = self.input.length(4)?;
                self.remember(index)
            }
            0x94 => self.remember(self.memo.len()),
            b'h' => {
                let index = self.input.length(1)?;
                self.recall(index)
            }
            b'j' => {
                let index = self.input.length(4)?;
                self.recall(index)
            }
            // What names, calls, fills or fetches something: GLOBAL, STACK_GLOBAL, REDUCE, BUILD, BINPERSID.
            b'c' => {
                let module = self.input.line()?;
                let name = self.input.line()?;
                self.push(Value::Global(Global::named(module, name)?))
            }
            0x93 => match (self.pop()?, self.pop()?) {
                (Value::Text(name), Value::Text(module)) => {
                    let global = Global::named(self.text(module), self.text(name))?;
                    self.push(Value::Global(global))
                }
                _ => Err("its pickle names a function by what is no text".into()),
            },
            b'R' => {
                let (arguments, function) = (self.pop()?, self.pop()?);
                let (Value::Global(global), Value::Tuple(arguments)) = (function, arguments) else {
                    return Err("its pickle calls something that is no function of torch".into());
                };
                if global == Global::OrderedDict {
                    return match self.tuple(arguments) {
                        [] => self.push_dict(),
                        _ => Err("its pickle makes an OrderedDict of something".into()),
                    };
                }
                let made = Objects::call(self, global, arguments)?;
                self.push(made)
            }
            b'b' => {
                // Attributes of a state dict, such as `_metadata`: versions of layers, which say nothing about tensors.
                let attributes = self.pop()?;
                self.top_dict("BUILD")?;
                match attributes {
                    Value::Dict(_) => Ok(()),
                    _ => Err("its pickle sets attributes that are no dictionary".into()),
                }
            }
            b'Q' => {
                let id = self.pop()?;
                let storage = Objects::storage(self, id)?;
                self.push(storage)
            }
            other => Err(format!(
                "its pickle has the opcode 0x{other:02X}{}, which no state dict needs: nothing of it was run",
                refused_name(other).map_or_else(String::new, |name| format!(" ({name})"))
            )),
        }
    }

    fn push(&mut self, value: Value) -> Result<(), String> {
        self.count()?;
        self.stack.push(value);
        Ok(())
    }

    fn count(&mut self) -> Result<(), String> {
        self.num_values += 1;
        if self.num_values <= MAX_VALUES {
            Ok(())
        } else {
            Err(format!("its pickle makes more than {MAX_VALUES} values"))
        }
    }

    /// Makes a tuple of the stack from `start`.
    fn push_tuple(&mut self, start: usize) -> Result<(), String> {
        let first = self.tuple_items.len();
        self.tuple_items.extend(self.stack.drain(start..));
        self.tuples.push(first..self.tuple_items.len());
        self.push(Value::Tuple(self.tuples.len() as u32 - 1))
    }

    fn push_dict(&mut self) -> Result<(), String> {
        self.dicts.push(Vec::new());
        self.push(Value::Dict(self.dicts.len() as u32 - 1))
    }

    fn push_text(&mut self, length_bytes: usize) -> Result<(), String> {
        let span = self.input.span(length_bytes)?;
        if span.len() > MAX_TEXT {
            return self.push(Value::Other);
        }
        match std::str::from_utf8(self.bytes(span)) {
            Ok(_) => self.push(Value::Text(span)),
            Err(_) => Err("its pickle has a text that is not UTF-8".into()),
        }
    }

    fn skip_bytes(&mut self, length_bytes: usize) -> Result<(), String> {
        self.input.span(length_bytes)?;
        self.push(Value::Other)
    }

    /// An integer of any length in two's complement.
    fn long(&mut self, length_bytes: usize) -> Result<(), String> {
        let span = self.input.span(length_bytes)?;
        let bytes = self.bytes(span);
        if bytes.len() > size_of::<i64>() {
            return self.push(Value::Long(span));
        }
        let negative = bytes.last().is_some_and(|&last| last & 0x80 != 0);
        let mut value = if negative { [0xFF; 8] } else { [0; 8] };
        value[..bytes.len()].copy_from_slice(bytes);
        self.push(Value::Int(i64::from_le_bytes(value)))
    }

    /// Index of the stack where its last `len` values begin; they must lie above the last mark.
    fn height_above_mark(&self, len: usize) -> Result<usize, String> {
        let bottom = self.marks.last().copied().unwrap_or(0);
        let start = self.stack.len().checked_sub(len).filter(|&start| start >= bottom);
        start.ok_or_else(|| "its pickle takes a value that is not there".into())
    }

    fn pop(&mut self) -> Result<Value, String> {
        let last = self.height_above_mark(1)?;
        let value = self.stack[last];
        self.stack.truncate(last);
        Ok(value)
    }

    fn top(&self) -> Result<Value, String> {
        self.height_above_mark(1).map(|last| self.stack[last])
    }

    /// Closes the last mark: where the values above it begin.
    fn pop_mark(&mut self) -> Result<usize, String> {
        self.marks.pop().ok_or_else(|| "its pickle closes a mark that is not there".into())
    }

    /// The values above the last mark, which is closed.
    fn take_marked(&mut self) -> Result<Vec<Value>, String> {
        let mark = self.pop_mark()?;
        Ok(self.stack.split_off(mark))
    }

    /// Index of the list on top of the stack.
    fn top_list(&self) -> Result<usize, String> {
        match self.top()? {
            Value::List(list) => Ok(list as usize),
            _ => Err("its pickle appends to what is no list".into()),
        }
    }

    /// Index of the dictionary on top of the stack.
    fn top_dict(&self, opcode: &str) -> Result<usize, String> {
        match self.top()? {
            Value::Dict(dict) => Ok(dict as usize),
            _ => Err(format!("its pickle uses {opcode} on what is no dictionary")),
        }
    }

    fn remember(&mut self, index: usize) -> Result<(), String> {
        let value = self.top()?;
        // Picklers number as they go, from 0 or 1: a jump would only take memory.
        if index > self.memo.len() + 1 {
            return Err(format!("its pickle remembers a value as number {index}, out of turn"));
        }
        self.count()?;
        if index >= self.memo.len() {
            self.memo.resize(index + 1, None);
        }
        self.memo[index] = Some(value);
        Ok(())
    }

    fn recall(&mut self, index: usize) -> Result<(), String> {
        match self.memo.get(index) {
            Some(&Some(value)) => self.push(value),
            _ => Err(format!("its pickle recalls value {index}, which it never made")),
        }
    }
}
