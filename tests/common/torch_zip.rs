//! State dicts and zip files written by hand, sound or not.

/// A zip file of stored entries, whose directory may say something else than the truth.
#[derive(Default)]
pub struct Zip {
    entries: Vec<Entry>,
    zip64: bool,
    method: u16,
    flags: u16,
    count: Option<u64>,
    directory_offset: Option<u64>,
    comment: Vec<u8>,
}

struct Entry {
    name: Vec<u8>,
    content: Vec<u8>,
    /// Another entry whose content this one shares.
    alias: Option<Vec<u8>>,
    size: Option<u64>,
    offset: Option<u64>,
}

impl Zip {
    pub fn entry(self, name: &str, content: &[u8]) -> Self {
        self.entry_bytes(name.as_bytes(), content)
    }

    pub fn entry_bytes(mut self, name: &[u8], content: &[u8]) -> Self {
        let (name, content) = (name.to_vec(), content.to_vec());
        self.entries.push(Entry { name, content, alias: None, size: None, offset: None });
        self
    }

    /// Lists the content of `of` once more, as `name`.
    pub fn alias(mut self, name: &str, of: &str) -> Self {
        self = self.entry(name, b"");
        self.entries.last_mut().unwrap().alias = Some(of.into());
        self
    }

    /// Writes sizes and offsets of entries, and the end of the directory, as zip64 does.
    pub fn zip64(self) -> Self {
        Self { zip64: true, ..self }
    }

    pub fn method(self, method: u16) -> Self {
        Self { method, ..self }
    }

    pub fn flags(self, flags: u16) -> Self {
        Self { flags, ..self }
    }

    /// Claims this number of entries.
    pub fn count(self, count: u64) -> Self {
        Self { zip64: true, count: Some(count), ..self }
    }

    /// Claims that the directory begins here.
    pub fn directory_offset(self, offset: u64) -> Self {
        Self { directory_offset: Some(offset), ..self }
    }

    pub fn comment(self, comment: &[u8]) -> Self {
        Self { comment: comment.to_vec(), ..self }
    }

    /// Claims that the entry `name` has this size.
    pub fn size(mut self, name: &str, size: u64) -> Self {
        self.find(name).size = Some(size);
        self
    }

    /// Claims that the entry `name` begins here.
    pub fn offset(mut self, name: &str, offset: u64) -> Self {
        self.find(name).offset = Some(offset);
        self
    }

    fn find(&mut self, name: &str) -> &mut Entry {
        self.entries.iter_mut().find(|entry| entry.name == name.as_bytes()).unwrap()
    }

    pub fn file(&self) -> Vec<u8> {
        let mut file = Vec::new();
        let mut offsets = Vec::new();
        for entry in &self.entries {
            offsets.push(file.len() as u64);
            if entry.alias.is_some() {
                continue;
            }
            let len = (entry.content.len() as u32).to_le_bytes();
            file.extend(b"PK\x03\x04\x14\0\0\0");
            file.extend([&self.method.to_le_bytes()[..], &[0; 8], &len, &len].concat());
            file.extend([&(entry.name.len() as u16).to_le_bytes()[..], &[3, 0]].concat());
            file.extend([&entry.name[..], b"FB!", &entry.content].concat());
        }
        let start = file.len() as u64;
        for (i, entry) in self.entries.iter().enumerate() {
            let original = match &entry.alias {
                Some(of) => self.entries.iter().position(|other| other.name == *of).unwrap(),
                None => i,
            };
            let size = entry.size.unwrap_or(self.entries[original].content.len() as u64);
            let offset = entry.offset.unwrap_or(offsets[original]);
            let short = |wide: u64| if self.zip64 { u32::MAX } else { wide as u32 }.to_le_bytes();
            let mut extra = Vec::new();
            if self.zip64 {
                extra.extend([&[1, 0, 24, 0][..], &size.to_le_bytes(), &size.to_le_bytes()].concat());
                extra.extend(offset.to_le_bytes());
            }
            file.extend(b"PK\x01\x02\x14\0\x14\0");
            file.extend([self.flags.to_le_bytes(), self.method.to_le_bytes()].concat());
            file.extend([&[0; 8][..], &short(size), &short(size)].concat());
            file.extend((entry.name.len() as u16).to_le_bytes());
            file.extend((extra.len() as u16).to_le_bytes());
            file.extend([&[0; 10][..], &short(offset), &entry.name, &extra].concat());
        }
        let end = file.len() as u64;
        let len = end - start;
        let start = self.directory_offset.unwrap_or(start);
        let count = self.count.unwrap_or(self.entries.len() as u64);
        if self.zip64 {
            file.extend(b"PK\x06\x06");
            file.extend([&44u64.to_le_bytes()[..], &[0; 12]].concat());
            file.extend([count, count, len, start].map(u64::to_le_bytes).concat());
            file.extend([&b"PK\x06\x07\0\0\0\0"[..], &end.to_le_bytes(), &1u32.to_le_bytes()].concat());
        }
        file.extend(b"PK\x05\x06\0\0\0\0");
        file.extend([(count as u16).to_le_bytes(), (count as u16).to_le_bytes()].concat());
        file.extend([(len as u32).to_le_bytes(), (start as u32).to_le_bytes()].concat());
        file.extend((self.comment.len() as u16).to_le_bytes());
        file.extend(&self.comment);
        file
    }
}

/// A file as torch.save writes it: a tensor a line of `tensors`, name, class of its storage, shape and bytes.
pub fn torch_file(tensors: &[(&str, &str, Vec<usize>, &[u8])]) -> Vec<u8> {
    let mut pickle = b"\x80\x02}".to_vec();
    let mut zip = Zip::default();
    for (i, (name, class, shape, bytes)) in tensors.iter().enumerate() {
        let size: Vec<i32> = shape.iter().map(|&len| len as i32).collect();
        let mut strides = vec![1; size.len()];
        for axis in (1..size.len()).rev() {
            strides[axis - 1] = strides[axis] * size[axis];
        }
        let one = state_dict_pickle(name, class, &i.to_string(), size.iter().product(), 0, &size, &strides);
        // Without its head (PROTO, EMPTY_DICT) and its end (STOP).
        pickle.extend(&one[3..one.len() - 1]);
        zip = zip.entry(&format!("pytorch_model/data/{i}"), bytes);
    }
    pickle.push(b'.');
    zip.entry("pytorch_model/data.pkl", &pickle).entry("pytorch_model/byteorder", b"little").file()
}

/// BINUNICODE of `text`.
pub fn text(text: &str) -> Vec<u8> {
    [b"X", &(text.len() as u32).to_le_bytes()[..], text.as_bytes()].concat()
}

fn number(value: i32) -> Vec<u8> {
    [b"J", &value.to_le_bytes()[..]].concat()
}

fn tuple(items: &[i32]) -> Vec<u8> {
    let items: Vec<u8> = items.iter().flat_map(|&item| number(item)).collect();
    [b"(", &items[..], b"t"].concat()
}

/// A pickle of a dictionary with one tensor: a view of the storage `key` of class `torch.<class>`.
pub fn state_dict_pickle(
    name: &str,
    class: &str,
    key: &str,
    num_elements: i32,
    offset: i32,
    size: &[i32],
    strides: &[i32],
) -> Vec<u8> {
    let storage =
        [b"(".to_vec(), text("storage"), format!("ctorch\n{class}\n").into_bytes(), text(key), text("cpu")]
            .concat();
    let view = [number(offset), tuple(size), tuple(strides)].concat();
    [
        &b"\x80\x02}"[..],
        &text(name),
        b"ctorch._utils\n_rebuild_tensor_v2\n(",
        &storage,
        &number(num_elements),
        b"tQ",
        &view,
        b"\x89ccollections\nOrderedDict\n)RtRs.",
    ]
    .concat()
}
