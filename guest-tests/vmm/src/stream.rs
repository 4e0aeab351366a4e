//! What a Linux sends by its UART, on its way to the host's, with the lines of others between its own.
//!
//! Invariant: its bytes are given on as they come and none is lost, but for a line that says how many checks there were: the host has an end of its
//! own, and is told the number. What else is to be said waits until the line that has begun ends, or ends it if there is no more room to wait.

/// The beginnings of lines that are looked at; the first is the longer one.
const CHECK: &[u8] = b"@cloven check ";
const DONE: &[u8] = b"@cloven done ";

/// A stream, in which at most `ROOM` bytes of others wait.
#[derive(Debug)]
pub struct Stream<const ROOM: usize> {
    /// How its line begins, as much of that as is looked at.
    head: [u8; CHECK.len()],
    len: usize,
    state: State,
    waiting: [u8; ROOM],
    wait_len: usize,
    /// Checks that came.
    pub checks: usize,
    /// How many it says that it made.
    pub said: Option<usize>,
}

/// What became of a line so far.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// It may become one that is not given on: nothing of it was.
    Held,
    /// It is given on.
    Given,
    /// It is not. The number in it so far.
    Dropped(usize),
}

impl<const ROOM: usize> Stream<ROOM> {
    /// One in which nothing has come.
    pub const fn new() -> Self {
        Self {
            head: [0; CHECK.len()],
            len: 0,
            state: State::Held,
            waiting: [0; ROOM],
            wait_len: 0,
            checks: 0,
            said: None,
        }
    }

    /// Whether no line has begun.
    pub const fn is_between_lines(&self) -> bool {
        self.len == 0
    }

    fn head(&self) -> &[u8] {
        &self.head[..self.len]
    }

    fn remember(&mut self, byte: u8) {
        if let Some(place) = self.head.get_mut(self.len) {
            *place = byte;
            self.len += 1;
        }
    }

    /// A byte comes. What is to be sent goes to `out`.
    pub fn push(&mut self, byte: u8, mut out: impl FnMut(&[u8])) {
        self.remember(byte);
        match self.state {
            State::Held if self.head() == DONE => self.state = State::Dropped(0),
            State::Held if DONE.starts_with(self.head()) => {}
            State::Held => {
                out(self.head());
                self.state = State::Given;
            }
            State::Given => out(&[byte]),
            State::Dropped(number) => {
                let digit = usize::from(byte.wrapping_sub(b'0'));
                if digit < 10 {
                    self.state = State::Dropped(number.saturating_mul(10).saturating_add(digit));
                }
            }
        }
        if byte == b'\n' {
            if let State::Dropped(number) = self.state {
                self.said = Some(number);
            }
            self.checks += usize::from(self.head() == CHECK);
            self.begin_line(out);
        }
    }

    fn begin_line(&mut self, mut out: impl FnMut(&[u8])) {
        (self.len, self.state) = (0, State::Held);
        if self.wait_len > 0 {
            out(&self.waiting[..self.wait_len]);
            self.wait_len = 0;
        }
    }

    /// Ends the line that has begun, if one has.
    pub fn end_line(&mut self, mut out: impl FnMut(&[u8])) {
        if self.len == 0 {
            return;
        }
        if self.state == State::Held {
            out(self.head());
        }
        out(b"\r\n");
        self.begin_line(out);
    }

    /// Somebody else has a whole line to say, in these parts.
    pub fn say(&mut self, parts: &[&str], mut out: impl FnMut(&[u8])) {
        let bytes: usize = parts.iter().map(|part| part.len()).sum();
        if self.len > 0 && bytes <= ROOM - self.wait_len {
            for part in parts {
                let end = self.wait_len + part.len();
                self.waiting[self.wait_len..end].copy_from_slice(part.as_bytes());
                self.wait_len = end;
            }
            return;
        }
        self.end_line(&mut out);
        parts.iter().for_each(|part| out(part.as_bytes()));
    }
}

impl<const ROOM: usize> Default for Stream<ROOM> {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use std::string::String;
    use std::vec::Vec;

    use proptest::prelude::*;

    use super::*;

    /// What comes out, and the stream.
    fn sent(text: &str) -> (String, Stream<16>) {
        let (mut out, mut stream) = (Vec::new(), Stream::new());
        text.bytes().for_each(|byte| stream.push(byte, |bytes| out.extend(bytes)));
        (String::from_utf8(out).unwrap(), stream)
    }

    #[test]
    fn what_comes_goes_on_at_once() {
        let (out, stream) = sent("one\r\n~ # @home \x1b[6n");
        assert_eq!(out, "one\r\n~ # @home \x1b[6n");
        assert!(!stream.is_between_lines());
        assert!(sent("one\r\n").1.is_between_lines());
    }

    #[test]
    fn checks_are_counted_and_given_on() {
        let text =
            "@cloven check a ok\r\n@cloven checks\r\n @cloven check b ok\r\n@cloven check c FAIL x\r\n";
        let (out, stream) = sent(text);
        assert_eq!((out.as_str(), stream.checks, stream.said), (text, 2, None));
    }

    #[test]
    fn its_own_end_is_told_and_not_given_on() {
        let (out, stream) = sent("a\r\n@cloven done 12\r\n@cloven donkey\r\nb\r\n");
        assert_eq!((out.as_str(), stream.said), ("a\r\n@cloven donkey\r\nb\r\n", Some(12)));
        assert_eq!(sent("@cloven done 99999999999999999999999\n").1.said, Some(usize::MAX));
    }

    #[test]
    fn a_line_of_others_waits_for_the_end_of_one_that_has_begun() {
        let (_, mut stream) = sent("begun");
        let mut out = Vec::<u8>::new();
        stream.say(&["of ", "others\r\n"], |bytes| out.extend(bytes));
        assert!(out.is_empty());
        b" ended\n".iter().for_each(|&byte| stream.push(byte, |bytes| out.extend(bytes)));
        assert_eq!(out, b" ended\nof others\r\n");
        stream.say(&["more\r\n"], |bytes| out.extend(bytes));
        assert_eq!(out, b" ended\nof others\r\nmore\r\n");
    }

    #[test]
    fn without_room_to_wait_a_line_of_others_ends_one_that_has_begun() {
        let (_, mut stream) = sent("@cloven d");
        let mut out = Vec::<u8>::new();
        stream.say(&["it is longer than there is room\r\n"], |bytes| out.extend(bytes));
        assert_eq!(out, b"@cloven d\r\nit is longer than there is room\r\n");
    }

    proptest! {
        #[test]
        fn nothing_is_lost(
            parts in prop::collection::vec(
                prop_oneof![
                    "[a-c@\r\n]{1,6}", Just(String::from("@cloven check ")), Just(String::from("@cloven don")),
                    Just(String::from("\n#other\n")),
                ],
                0..40,
            ),
        ) {
            let (mut out, mut own, mut others) = (Vec::new(), Vec::new(), 0);
            let mut stream = Stream::<16>::new();
            for part in &parts {
                if part.contains('#') {
                    stream.say(&["#other\n"], |bytes| out.extend(bytes));
                    others += 1;
                } else {
                    own.extend(part.bytes());
                    part.bytes().for_each(|byte| stream.push(byte, |bytes| out.extend(bytes)));
                }
            }
            stream.end_line(|bytes| out.extend(bytes));
            let out = String::from_utf8(out).unwrap();
            prop_assert_eq!(out.matches("#other\n").count(), others);
            // Line ends may have come in between.
            let bare = |text: &str| text.replace("#other\n", "").replace(['\r', '\n'], "");
            prop_assert_eq!(bare(&out), bare(&String::from_utf8(own).unwrap()));
            prop_assert!(out.lines().all(|line| !line.contains('#') || line == "#other"));
        }
    }
}
