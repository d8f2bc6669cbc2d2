//! The language: `name = value`, one a line or separated by `;`, where a value is a string in either
//! quotes, a number, or a list of values; `+=` adds to what was set before; `#` begins a comment.
//!
//! As in xl (libxlu's scanner): names are lower case letters, digits and `_`; a list may go over
//! several lines and end with a comma; a string ends on its line and knows C's escapes. Every mistake
//! is named with line and column. [`Config`] prints as a text that reads as the same.

use alloc::format;
use alloc::string::{String, ToString};
use alloc::vec::Vec;
use core::fmt;

/// Lists within lists; a file is untrusted, and reading it must not use up the stack.
const DEPTH: usize = 8;

/// Where something stands, both counted from 1; columns are characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// Line.
    pub line: u32,
    /// Column.
    pub column: u32,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}, column {}", self.line, self.column)
    }
}

/// Why a text is no configuration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mistake {
    /// Where.
    pub place: Place,
    /// What is wrong there.
    pub what: String,
}

impl fmt::Display for Mistake {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.place, self.what)
    }
}

/// A value.
#[derive(Clone, Debug)]
pub struct Value {
    /// Where it begins.
    pub place: Place,
    /// What it is.
    pub kind: Kind,
}

/// Two values are the same wherever they stand.
impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        self.kind == other.kind
    }
}
impl Eq for Value {}

/// What a value is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Kind {
    /// A string.
    Text(String),
    /// A number: decimal, `0x` hexadecimal, or octal with a leading 0.
    Number(u64),
    /// A list.
    List(Vec<Value>),
}

impl Kind {
    /// The word for messages.
    pub fn word(&self) -> &'static str {
        match self {
            Kind::Text(_) => "a string",
            Kind::Number(_) => "a number",
            Kind::List(_) => "a list",
        }
    }
}

/// One name and its value.
#[derive(Clone, Debug)]
pub struct Setting {
    /// Name.
    pub name: String,
    /// Where the name stands.
    pub place: Place,
    /// Value.
    pub value: Value,
}

impl PartialEq for Setting {
    fn eq(&self, other: &Setting) -> bool {
        self.name == other.name && self.value == other.value
    }
}
impl Eq for Setting {}

/// A whole file: each name once, in the order of the file.
#[derive(Clone, Debug, Default)]
pub struct Config {
    /// The settings.
    pub settings: Vec<Setting>,
    /// Names that were set again: the last value counts.
    pub again: Vec<(String, Place)>,
}

impl PartialEq for Config {
    fn eq(&self, other: &Config) -> bool {
        self.settings == other.settings
    }
}
impl Eq for Config {}

impl Config {
    /// The setting of this name.
    pub fn get(&self, name: &str) -> Option<&Setting> {
        self.settings.iter().find(|setting| setting.name == name)
    }

    fn set(&mut self, setting: Setting, append: bool) -> Result<(), Mistake> {
        let known = self.settings.iter_mut().find(|s| s.name == setting.name);
        let Some(known) = known else {
            self.settings.push(setting);
            return Ok(());
        };
        if !append {
            self.again.push((setting.name.clone(), setting.place));
            *known = setting;
            return Ok(());
        }
        match (&mut known.value.kind, setting.value.kind) {
            (Kind::Text(text), Kind::Text(more)) => text.push_str(&more),
            (Kind::List(list), Kind::List(more)) => list.extend(more),
            (old, new) => {
                let what = format!("+= adds {} to {}", new.word(), old.word());
                return Err(Mistake {
                    place: setting.value.place,
                    what,
                });
            }
        }
        Ok(())
    }
}

/// Reads a file.
pub fn parse(bytes: &[u8]) -> Result<Config, Mistake> {
    let text = match core::str::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => {
            let good = bytes.get(..error.valid_up_to()).unwrap_or(&[]);
            let mut reader = Reader::new(core::str::from_utf8(good).unwrap_or(""));
            while reader.next().is_some() {}
            return Err(reader.mistake("this is not UTF-8"));
        }
    };
    let mut reader = Reader::new(text);
    let mut config = Config::default();
    loop {
        reader.space(true);
        match reader.peek() {
            None => return Ok(config),
            Some(';') => {
                reader.next();
            }
            Some(_) => {
                let (setting, append) = reader.setting()?;
                config.set(setting, append)?;
            }
        }
    }
}

struct Reader<'a> {
    rest: core::str::Chars<'a>,
    place: Place,
}

impl<'a> Reader<'a> {
    fn new(text: &'a str) -> Reader<'a> {
        Reader {
            rest: text.chars(),
            place: Place { line: 1, column: 1 },
        }
    }

    fn peek(&self) -> Option<char> {
        self.rest.clone().next()
    }

    fn next(&mut self) -> Option<char> {
        let next = self.rest.next()?;
        if next == '\n' {
            self.place.line = self.place.line.saturating_add(1);
            self.place.column = 1;
        } else {
            self.place.column = self.place.column.saturating_add(1);
        }
        Some(next)
    }

    fn mistake(&self, what: impl Into<String>) -> Mistake {
        Mistake {
            place: self.place,
            what: what.into(),
        }
    }

    /// What is not what was expected.
    fn unexpected(&self, expected: &str) -> Mistake {
        let found = match self.peek() {
            None => "the end of the file".to_string(),
            Some('\n') => "the end of the line".to_string(),
            Some(letter) => format!("{letter:?}"),
        };
        self.mistake(format!("{found} where {expected} should be"))
    }

    /// Passes over blanks and comments, and over ends of lines if `lines`.
    fn space(&mut self, lines: bool) {
        loop {
            match self.peek() {
                Some(' ' | '\t' | '\r') => {}
                Some('\n') if lines => {}
                Some('#') => {
                    while self.peek().is_some_and(|letter| letter != '\n') {
                        self.next();
                    }
                    continue;
                }
                _ => return,
            }
            self.next();
        }
    }

    fn word(&mut self, takes: impl Fn(char) -> bool) -> String {
        let mut word = String::new();
        while let Some(letter) = self.peek().filter(|letter| takes(*letter)) {
            word.push(letter);
            self.next();
        }
        word
    }

    fn setting(&mut self) -> Result<(Setting, bool), Mistake> {
        let place = self.place;
        let name = match self.peek() {
            Some('a'..='z' | '_') => self.word(|c| matches!(c, 'a'..='z' | '0'..='9' | '_')),
            _ => return Err(self.unexpected("a name (lower case letters, digits, _)")),
        };
        self.space(false);
        let append = self.peek() == Some('+');
        if append {
            self.next();
        }
        if self.peek() != Some('=') {
            return Err(self.unexpected("="));
        }
        self.next();
        self.space(false);
        let value = self.value(0)?;
        self.space(false);
        match self.peek() {
            None | Some('\n' | ';') => {
                self.next();
            }
            Some(_) => return Err(self.unexpected("the end of the line or ;")),
        }
        Ok((Setting { name, place, value }, append))
    }

    fn value(&mut self, depth: usize) -> Result<Value, Mistake> {
        let place = self.place;
        let kind = match self.peek() {
            Some(quote @ ('"' | '\'')) => Kind::Text(self.text(quote)?),
            Some('0'..='9') => Kind::Number(self.number()?),
            Some('[') if depth < DEPTH => Kind::List(self.list(depth)?),
            Some('[') => return Err(self.mistake("lists within lists, too many")),
            _ => return Err(self.unexpected("a string in quotes, a number or a list")),
        };
        Ok(Value { place, kind })
    }

    fn number(&mut self) -> Result<u64, Mistake> {
        let start = self.place;
        let word = self.word(|c| c.is_ascii_alphanumeric());
        let read = match (word.strip_prefix("0x"), word.strip_prefix('0')) {
            (Some(hex), _) => u64::from_str_radix(hex, 16),
            (None, Some("")) => Ok(0),
            (None, Some(octal)) => u64::from_str_radix(octal, 8),
            (None, None) => word.parse(),
        };
        read.map_err(|_| Mistake {
            place: start,
            what: format!("{word} is no number, or too large; a string stands in quotes"),
        })
    }

    fn list(&mut self, depth: usize) -> Result<Vec<Value>, Mistake> {
        self.next();
        let mut values = Vec::new();
        loop {
            self.space(true);
            if self.peek() == Some(']') {
                break;
            }
            values.push(self.value(depth + 1)?);
            self.space(true);
            match self.peek() {
                Some(',') => {
                    self.next();
                }
                Some(']') => break,
                _ => return Err(self.unexpected(", or ]")),
            }
        }
        self.next();
        Ok(values)
    }

    fn text(&mut self, quote: char) -> Result<String, Mistake> {
        let start = self.place;
        self.next();
        let mut bytes = Vec::new();
        loop {
            let place = self.place;
            match self.next() {
                None | Some('\n') => {
                    return Err(Mistake {
                        place: start,
                        what: format!("a string without its closing {quote}"),
                    });
                }
                Some(letter) if letter == quote => break,
                Some('\\') => {
                    let byte = self.escaped().ok_or(Mistake {
                        place,
                        what: "an escape that is none; a backslash is written \\\\".into(),
                    })?;
                    bytes.push(byte);
                }
                Some('\0') => {
                    return Err(Mistake {
                        place,
                        what: "a zero byte".into(),
                    });
                }
                Some(letter) => bytes.extend_from_slice(letter.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        String::from_utf8(bytes).map_err(|_| Mistake {
            place: start,
            what: "a string whose escapes make no UTF-8".into(),
        })
    }

    /// What follows a backslash.
    fn escaped(&mut self) -> Option<u8> {
        let byte = match self.next()? {
            quoted @ ('\\' | '\'' | '"') => quoted as u8,
            'a' => 0x07,
            'b' => 0x08,
            'f' => 0x0c,
            'n' => b'\n',
            'r' => b'\r',
            't' => b'\t',
            'v' => 0x0b,
            'x' => {
                let high = self.next()?.to_digit(16)?;
                let low = self.next()?.to_digit(16)?;
                (high * 16 + low) as u8
            }
            first @ '0'..='7' => {
                let mut value = first.to_digit(8)?;
                for _ in 0..2 {
                    let Some(digit) = self.peek().and_then(|c| c.to_digit(8)) else {
                        break;
                    };
                    value = value * 8 + digit;
                    self.next();
                }
                u8::try_from(value).ok()?
            }
            _ => return None,
        };
        (byte != 0).then_some(byte)
    }
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.kind {
            Kind::Number(number) => write!(f, "{number}"),
            Kind::Text(text) => {
                f.write_str("\"")?;
                for letter in text.chars() {
                    match letter {
                        '"' | '\\' => write!(f, "\\{letter}")?,
                        '\n' => f.write_str("\\n")?,
                        '\0'..='\x1f' | '\x7f' => write!(f, "\\x{:02x}", letter as u32)?,
                        _ => write!(f, "{letter}")?,
                    }
                }
                f.write_str("\"")
            }
            Kind::List(list) => {
                f.write_str("[")?;
                for (index, value) in list.iter().enumerate() {
                    let comma = if index == 0 { "" } else { ", " };
                    write!(f, "{comma}{value}")?;
                }
                f.write_str("]")
            }
        }
    }
}

impl fmt::Display for Config {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.settings
            .iter()
            .try_for_each(|setting| writeln!(f, "{} = {}", setting.name, setting.value))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn text(config: &Config, name: &str) -> String {
        match &config.get(name).unwrap().value.kind {
            Kind::Text(text) => text.clone(),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_file_as_people_write_them_is_read() {
        let config = parse(
            b"# a guest\nname = \"debian\"; type='pvh'\nmemory=0x200 # MiB\nvcpus = 010\n\n\
              disk = [ 'format=raw, vdev=xvda, target=root',\n  # two\n  \"swap,,xvdb\", ]\n\
              extra = \"a\"\nextra += ' \\x41\\102\\t\\''\nempty=[]\nnested = [[1,2],['x']]",
        )
        .unwrap();
        assert_eq!(text(&config, "name"), "debian");
        assert_eq!(text(&config, "type"), "pvh");
        assert_eq!(text(&config, "extra"), "a AB\t'");
        assert_eq!(config.get("memory").unwrap().value.kind, Kind::Number(512));
        assert_eq!(config.get("vcpus").unwrap().value.kind, Kind::Number(8));
        let Kind::List(disks) = &config.get("disk").unwrap().value.kind else {
            panic!("{config}");
        };
        assert_eq!(disks.len(), 2);
        assert_eq!(disks[1].place, Place { line: 8, column: 3 });
        assert_eq!(
            config.get("empty").unwrap().value.kind,
            Kind::List([].into())
        );
    }

    #[test]
    fn mistakes_have_line_and_column() {
        for (bytes, line, column, says) in [
            (&b"name = \"x\"\nmemory 512"[..], 2, 8, "where = should be"),
            (b"name = x", 1, 8, "a string in quotes"),
            (b"name = 'x", 1, 8, "without its closing '"),
            (b"name = 'x\n'", 1, 8, "without its closing '"),
            (b"a = 1 b = 2", 1, 7, "end of the line or ;"),
            (b"a = 12q", 1, 5, "12q is no number"),
            (b"a = 99999999999999999999", 1, 5, "too large"),
            (b"a = [1 2]", 1, 8, ", or ]"),
            (b"a = [1,\n2", 2, 2, "the end of the file"),
            (b"Name = 1", 1, 1, "a name"),
            (b"a = 'x\\q'", 1, 7, "escape"),
            (b"a = '\\x00'", 1, 6, "escape"),
            (b"a = '\\xff'", 1, 5, "no UTF-8"),
            (b"a = 1\nb = '\xff'", 2, 6, "not UTF-8"),
            (b"a = 1\na += 2", 2, 6, "adds a number to a number"),
            (b"a = [[[[[[[[[1]]]]]]]]]", 1, 13, "lists within lists"),
        ] {
            let mistake = parse(bytes).unwrap_err();
            assert_eq!(mistake.place, Place { line, column }, "{mistake}");
            assert!(mistake.to_string().contains(says), "{mistake}");
        }
    }

    #[test]
    fn the_last_value_counts_and_the_repetition_is_told() {
        let config = parse(b"a = 1\na = 2").unwrap();
        assert_eq!(config.get("a").unwrap().value.kind, Kind::Number(2));
        assert_eq!(config.again, [("a".into(), Place { line: 2, column: 1 })]);
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<u64>().prop_map(Kind::Number),
            "[^\\x00]{0,12}".prop_map(Kind::Text),
        ];
        let kind = leaf.prop_recursive(3, 12, 4, |inner| {
            let values = inner.prop_map(|kind| Value {
                place: Place::default(),
                kind,
            });
            proptest::collection::vec(values, 0..4).prop_map(Kind::List)
        });
        kind.prop_map(|kind| Value {
            place: Place::default(),
            kind,
        })
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(200))]
        #[test]
        fn what_is_printed_reads_back(settings in proptest::collection::btree_map("[a-z_][a-z0-9_]{0,8}", value(), 0..6)) {
            let config = Config {
                settings: settings
                    .into_iter()
                    .map(|(name, value)| Setting { name, place: Place::default(), value })
                    .collect(),
                again: Vec::new(),
            };
            let printed = config.to_string();
            prop_assert_eq!(parse(printed.as_bytes()), Ok(config), "{}", printed);
        }

        #[test]
        fn any_bytes_are_a_configuration_or_a_mistake_within_them(
            bytes in proptest::collection::vec(prop_oneof![any::<u8>(), proptest::sample::select(&b"a=[]'\"\\#;,+\n 0x"[..])], 0..80)
        ) {
            if let Err(mistake) = parse(&bytes) {
                let lines = 1 + bytes.iter().filter(|byte| **byte == b'\n').count();
                prop_assert!((1..=lines).contains(&(mistake.place.line as usize)));
                prop_assert!((1..=bytes.len() + 1).contains(&(mistake.place.column as usize)));
            }
        }
    }
}
