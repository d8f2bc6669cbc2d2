//! Counts lines of Rust text that are code, and `unsafe` blocks: a lexer that knows comments,
//! strings and lifetimes, and leaves out items under `#[cfg(test)]`. Never panics on any text.

use std::ops::AddAssign;

/// What a text comes to.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Count {
    /// Lines with code on them.
    pub lines: usize,
    /// `unsafe {`.
    pub unsafe_blocks: usize,
}

impl AddAssign for Count {
    fn add_assign(&mut self, other: Count) {
        self.lines += other.lines;
        self.unsafe_blocks += other.unsafe_blocks;
    }
}

/// A token, as far as counting needs it.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Token {
    Word(String),
    Mark(char),
    Text,
}

/// Counts `text`.
pub fn count(text: &str) -> Count {
    let tokens = without_tests(lex(text));
    let mut lines: Vec<usize> = Vec::new();
    let mut out = Count::default();
    for (index, (token, first, last)) in tokens.iter().enumerate() {
        lines.extend(*first..=*last);
        let next = tokens.get(index + 1).map(|(token, ..)| token);
        if *token == Token::Word("unsafe".into()) && next == Some(&Token::Mark('{')) {
            out.unsafe_blocks += 1;
        }
    }
    lines.sort_unstable();
    lines.dedup();
    out.lines = lines.len();
    out
}

/// Tokens with their first and last line.
fn lex(text: &str) -> Vec<(Token, usize, usize)> {
    let letters: Vec<char> = text.chars().collect();
    let at = |index: usize| letters.get(index).copied().unwrap_or('\0');
    let mut out = Vec::new();
    let (mut index, mut line) = (0, 1);
    while index < letters.len() {
        let (start, first) = (index, line);
        let letter = at(index);
        index += 1;
        match letter {
            '\n' => line += 1,
            c if c.is_whitespace() => {}
            '/' if at(index) == '/' => {
                while index < letters.len() && at(index) != '\n' {
                    index += 1;
                }
            }
            '/' if at(index) == '*' => {
                let mut depth = 1;
                index += 1;
                while index < letters.len() && depth > 0 {
                    match (at(index), at(index + 1)) {
                        ('/', '*') => (depth, index) = (depth + 1, index + 1),
                        ('*', '/') => (depth, index) = (depth - 1, index + 1),
                        ('\n', _) => line += 1,
                        _ => {}
                    }
                    index += 1;
                }
            }
            '"' => {
                while index < letters.len() && at(index) != '"' {
                    if at(index) == '\\' {
                        line += usize::from(at(index + 1) == '\n');
                        index += 1;
                    } else {
                        line += usize::from(at(index) == '\n');
                    }
                    index += 1;
                }
                index += 1;
                out.push((Token::Text, first, line));
            }
            // A character, or a lifetime.
            '\'' if at(index) == '\\' => {
                index += 2;
                while index < letters.len() && at(index) != '\'' {
                    index += 1;
                }
                index += 1;
                out.push((Token::Text, first, line));
            }
            '\'' if at(index + 1) == '\'' => {
                index += 2;
                out.push((Token::Text, first, line));
            }
            c if c.is_alphanumeric() || c == '_' => {
                while at(index).is_alphanumeric() || at(index) == '_' {
                    index += 1;
                }
                let word: String = letters.get(start..index).unwrap_or(&[]).iter().collect();
                let hashes = (index..).take_while(|i| at(*i) == '#').count();
                if ["r", "br", "cr"].contains(&word.as_str()) && at(index + hashes) == '"' {
                    index += hashes + 1;
                    let closes = |i: usize| at(i) == '"' && (1..=hashes).all(|h| at(i + h) == '#');
                    while index < letters.len() && !closes(index) {
                        line += usize::from(at(index) == '\n');
                        index += 1;
                    }
                    index += hashes + 1;
                    out.push((Token::Text, first, line));
                } else {
                    out.push((Token::Word(word), first, line));
                }
            }
            mark => out.push((Token::Mark(mark), first, line)),
        }
    }
    out
}

/// Takes out every item after `#[cfg(test)]`, with the attribute.
fn without_tests(tokens: Vec<(Token, usize, usize)>) -> Vec<(Token, usize, usize)> {
    let word = |text: &str| Token::Word(text.into());
    let attribute = [
        Token::Mark('#'),
        Token::Mark('['),
        word("cfg"),
        Token::Mark('('),
        word("test"),
        Token::Mark(')'),
        Token::Mark(']'),
    ];
    let mut out = Vec::new();
    let mut index = 0;
    while let Some(token) = tokens.get(index) {
        let here = tokens.get(index..index + attribute.len()).unwrap_or(&[]);
        if here.len() != attribute.len() || !here.iter().zip(&attribute).all(|(a, b)| a.0 == *b) {
            out.push(token.clone());
            index += 1;
            continue;
        }
        index += attribute.len();
        // The item ends with a semicolon, or with the brace that closes its first one.
        let mut depth = 0usize;
        while let Some((token, ..)) = tokens.get(index) {
            index += 1;
            match token {
                Token::Mark('{') => depth += 1,
                Token::Mark('}') => {
                    depth = depth.saturating_sub(1);
                    if depth == 0 {
                        break;
                    }
                }
                Token::Mark(';') if depth == 0 => break,
                _ => {}
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn counts(text: &str) -> (usize, usize) {
        let count = count(text);
        (count.lines, count.unsafe_blocks)
    }

    #[test]
    fn comments_and_blanks_are_no_lines() {
        assert_eq!(
            counts("// a\n\n/* b\n /* c */ \n*/ fn x() {}\n    \n}\n"),
            (2, 0)
        );
    }

    #[test]
    fn strings_hide_comments_and_words() {
        assert_eq!(
            counts(
                "let a = \"// unsafe {\";\nlet b = r#\"/* \" unsafe {\"#;\nlet c = '\"'; unsafe { x }\n"
            ),
            (3, 1)
        );
        assert_eq!(counts("fn f<'a>(x: &'a str) { unsafe { g(x) } }"), (1, 1));
        assert_eq!(counts("let s = \"two\nlines\";"), (2, 0));
    }

    #[test]
    fn tests_are_left_out() {
        let text = "fn a() {}\n#[cfg(test)]\nmod tests {\n fn b() { unsafe { c() } }\n}\nfn d() {}\n#[cfg(test)]\nmod e;\nfn f() {}\n";
        assert_eq!(counts(text), (3, 0));
    }

    #[test]
    fn unsafe_functions_are_not_blocks() {
        assert_eq!(
            counts("unsafe fn a() {}\nunsafe impl B for C {}\nfn d() { unsafe { a() } }"),
            (3, 1)
        );
    }

    proptest! {
        #[test]
        fn any_text_is_counted_without_panic(text in "[ -~\n]{0,200}") {
            prop_assert!(count(&text).lines <= text.lines().count() + 1);
        }
    }
}
