//! The lines that a REC prints, byte by byte.
//!
//! Invariant: a line is given on whole, or in parts of at most `N` bytes; its bytes are printable ASCII.

/// What has come of a line.
#[derive(Debug)]
pub struct Line<const N: usize> {
    bytes: [u8; N],
    len: usize,
}

impl<const N: usize> Line<N> {
    /// An empty one.
    pub const fn new() -> Self {
        Self { bytes: [0; N], len: 0 }
    }

    /// Takes a byte; gives the line to `print` when it is whole, or when there is no more room.
    pub fn push(&mut self, byte: u8, print: impl FnOnce(&str)) {
        match byte {
            b'\n' => self.end(print),
            b'\r' => {}
            b'\t' | b' '..=b'~' => self.take(byte, print),
            _ => self.take(b'?', print),
        }
    }

    /// Gives what has come of a line to `print`, if anything has.
    pub fn end(&mut self, print: impl FnOnce(&str)) {
        if self.len > 0 {
            print(core::str::from_utf8(&self.bytes[..self.len]).unwrap_or_default());
            self.len = 0;
        }
    }

    fn take(&mut self, byte: u8, print: impl FnOnce(&str)) {
        if self.len == N {
            self.end(print);
        }
        if let Some(place) = self.bytes.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }
}

impl<const N: usize> Default for Line<N> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::borrow::ToOwned;
    use std::string::String;
    use std::vec::Vec;

    use super::*;

    fn lines(bytes: &[u8]) -> (Vec<String>, Line<8>) {
        let (mut lines, mut line) = (Vec::new(), Line::new());
        for &byte in bytes {
            line.push(byte, |text| lines.push(text.to_owned()));
        }
        (lines, line)
    }

    #[test]
    fn a_line_is_given_on_when_it_ends() {
        let (mut whole, mut line) = lines(b"one\r\n\ntwo\nrest");
        assert_eq!(whole, ["one", "two"]);
        line.end(|text| whole.push(text.to_owned()));
        line.end(|text| whole.push(text.to_owned()));
        assert_eq!(whole, ["one", "two", "rest"]);
    }

    #[test]
    fn a_long_line_comes_in_parts() {
        assert_eq!(lines(b"0123456789abcdefg\n").0, ["01234567", "89abcdef", "g"]);
    }

    #[test]
    fn what_cannot_be_printed_is_marked() {
        assert_eq!(lines(b"a\x1b[\xff\n").0, ["a?[?"]);
    }
}
