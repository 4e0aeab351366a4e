//! Which translations are right at this moment.
//!
//! Invariant: for each range of addresses there is a set of values, each with the calls that it has in it. A call that has begun may or
//! may not have been made, in any order with others; once it is over, only values that have it in them are right. So the set is what any
//! order of whole calls could have left, and no more.

use crate::decode::Regime;

/// What an address is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    /// Nothing, or what only software knows.
    None,
    /// A leaf, which translates or does not for now.
    Leaf {
        /// Output minus input, wrapping.
        shift: u64,
        /// Attribute bits that hardware knows.
        bits: u64,
        /// Whether it translates.
        valid: bool,
    },
}

impl Value {
    fn translates(&self) -> bool {
        matches!(self, Self::Leaf { valid: true, .. })
    }
}

/// What a call does to an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Effect {
    /// Nothing that a walk could see.
    Nothing,
    /// This is there now.
    Set(Value),
    /// A leaf's bits.
    Bits {
        /// Bits to set, after clearing.
        set: u64,
        /// Bits to clear.
        clear: u64,
        /// What becomes of validity.
        valid: Option<bool>,
    },
}

impl Effect {
    fn apply(&self, value: Value) -> Value {
        match (*self, value) {
            (Self::Set(value), _) => value,
            (Self::Bits { set, clear, valid: becomes }, Value::Leaf { shift, bits, valid }) => {
                Value::Leaf { shift, bits: bits & !clear | set, valid: becomes.unwrap_or(valid) }
            }
            _ => value,
        }
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Segment {
    start: u64,
    end: u64,
    /// A value, and which calls it has in it.
    values: Vec<(Value, u32)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Call {
    start: u64,
    end: u64,
    effect: Effect,
}

/// A call that has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[must_use]
pub struct Begun(usize);

impl Begun {
    pub(crate) fn number(self) -> usize {
        self.0
    }
    pub(crate) fn of(number: usize) -> Self {
        Self(number)
    }
}

/// The whole of a map.
#[derive(Clone, Debug, Hash)]
pub struct Expect {
    segments: Vec<Segment>,
    calls: Vec<Option<Call>>,
    attributes: u64,
    /// What those who are reading may have seen since they began: calls in it never end.
    readers: Vec<Option<Box<Expect>>>,
}

impl Expect {
    /// An empty map of so many bytes. `hardware`: flags that hardware sets are nobody's expectation.
    pub fn new(reach: u64, regime: Regime, hardware: bool) -> Self {
        let attributes = regime.attributes() & !if hardware { regime.flags() } else { 0 };
        let segments = vec![Segment { start: 0, end: reach, values: vec![(Value::None, 0)] }];
        Self { segments, calls: Vec::new(), attributes, readers: Vec::new() }
    }

    fn first(&self, address: u64) -> usize {
        self.segments.partition_point(|segment| segment.end <= address)
    }

    fn cut(&mut self, at: u64) {
        let number = self.first(at);
        if let Some(segment) = self.segments.get_mut(number)
            && segment.start < at
        {
            let mut second = segment.clone();
            segment.end = at;
            second.start = at;
            self.segments.insert(number + 1, second);
        }
    }

    /// Somebody begins to read: what was right at any moment until it ends is right for it.
    pub fn begin_reading(&mut self, reader: usize) {
        let now = Self { readers: Vec::new(), ..self.clone() };
        if self.readers.len() <= reader {
            self.readers.resize(reader + 1, None);
        }
        self.readers[reader] = Some(Box::new(now));
    }
    /// It ends.
    pub fn end_reading(&mut self, reader: usize) {
        self.readers[reader] = None;
    }
    /// What is right for who reads.
    pub fn of_reader(&self, reader: usize) -> &Self {
        self.readers.get(reader).and_then(|reader| reader.as_deref()).unwrap_or(self)
    }

    /// A call of `start .. end` begins.
    pub fn begin(&mut self, (start, end): (u64, u64), effect: Effect) -> Begun {
        for reader in self.readers.iter_mut().flatten() {
            let _ = reader.begin((start, end), effect);
        }
        self.cut(start);
        self.cut(end);
        let call = Some(Call { start, end, effect });
        let number = match self.calls.iter().position(Option::is_none) {
            Some(number) => {
                self.calls[number] = call;
                number
            }
            None => {
                self.calls.push(call);
                self.calls.len() - 1
            }
        };
        assert!(number < 32, "too many calls at once");
        for at in self.first(start)..self.segments.len() {
            if self.segments[at].start >= end {
                break;
            }
            self.close(at);
        }
        Begun(number)
    }

    /// All orders of the calls that are going on.
    fn close(&mut self, at: usize) {
        let segment = &mut self.segments[at];
        let mut next = 0;
        while next < segment.values.len() {
            let (value, calls) = segment.values[next];
            for (number, call) in self.calls.iter().enumerate() {
                let Some(call) = call else { continue };
                let (bit, covers) = (1 << number, call.start <= segment.start && segment.end <= call.end);
                if covers && calls & bit == 0 {
                    let made = (call.effect.apply(value), calls | bit);
                    if !segment.values.contains(&made) {
                        segment.values.push(made);
                    }
                }
            }
            next += 1;
        }
    }

    /// A call is over: it was made, or it failed. Its range.
    pub fn end(&mut self, Begun(number): Begun, made: bool) -> (u64, u64) {
        let call = self.calls[number].take().expect("it has begun");
        let bit = 1 << number;
        for segment in &mut self.segments {
            if segment.start < call.end && call.start < segment.end {
                segment.values.retain(|(_, calls)| (calls & bit != 0) == made);
                segment.values.iter_mut().for_each(|(_, calls)| *calls &= !bit);
                segment.values.sort_unstable();
                segment.values.dedup();
            }
        }
        // What is alike again is one again.
        self.segments.dedup_by(|next, one| {
            let joins = one.values == next.values
                && self.calls.iter().flatten().all(|call| call.start != next.start && call.end != next.start);
            if joins {
                one.end = next.end;
            }
            joins
        });
        (call.start, call.end)
    }

    fn of(&self, start: u64, end: u64) -> impl Iterator<Item = &Segment> {
        self.segments[self.first(start)..].iter().take_while(move |segment| segment.start < end)
    }

    /// An address of `start .. end` of which it is wrong that it translates to what lies `shift` from it, with `bits`.
    pub fn refuses(&self, (start, end): (u64, u64), shift: u64, bits: u64) -> Option<u64> {
        let bits = bits & self.attributes;
        let is = |value: &Value| match *value {
            Value::Leaf { shift: s, bits: b, valid } => valid && s == shift && b & self.attributes == bits,
            Value::None => false,
        };
        let wrong = |segment: &&Segment| !segment.values.iter().any(|(value, _)| is(value));
        self.of(start, end).find(wrong).map(|segment| segment.start.max(start))
    }

    /// An address of `start .. end` that is to translate.
    pub fn refuses_fault(&self, (start, end): (u64, u64)) -> Option<u64> {
        let wrong = |segment: &&Segment| segment.values.iter().all(|(value, _)| value.translates());
        self.of(start, end).find(wrong).map(|segment| segment.start.max(start))
    }

    /// What may be at an address.
    pub fn values(&self, address: u64) -> Vec<Value> {
        self.of(address, address + 1)
            .flat_map(|segment| segment.values.iter().map(|(value, _)| *value))
            .collect()
    }

    /// Whether any call is going on.
    pub fn is_quiet(&self) -> bool {
        self.calls.iter().all(Option::is_none)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LEAF: Value = Value::Leaf { shift: 0, bits: 0x7fc, valid: true };
    const READ_ONLY: Effect = Effect::Bits { set: 0, clear: 0x80, valid: None };
    const NO_EXECUTE: Effect = Effect::Bits { set: 1 << 54, clear: 0, valid: None };

    fn expect() -> Expect {
        let mut expect = Expect::new(0x10000, Regime::Stage2, false);
        let begun = expect.begin((0x1000, 0x5000), Effect::Set(LEAF));
        expect.end(begun, true);
        expect
    }

    #[test]
    fn a_call_that_has_begun_may_have_been_made_or_not() {
        let mut expect = expect();
        let begun = expect.begin((0x2000, 0x3000), READ_ONLY);
        assert_eq!(expect.refuses((0x1000, 0x5000), 0, 0x7fc), None);
        assert_eq!(expect.refuses((0x1000, 0x5000), 0, 0x77c), Some(0x1000));
        assert_eq!(expect.refuses((0x2000, 0x3000), 0, 0x77c), None);
        expect.end(begun, true);
        assert_eq!(expect.refuses((0x1000, 0x5000), 0, 0x7fc), Some(0x2000));
        assert_eq!(expect.refuses_fault((0, 0x2000)), Some(0x1000));
    }

    #[test]
    fn two_calls_may_come_in_any_order_and_neither_is_lost() {
        let mut expect = expect();
        let first = expect.begin((0x1000, 0x3000), READ_ONLY);
        let second = expect.begin((0x2000, 0x5000), NO_EXECUTE);
        assert_eq!(expect.values(0x2000).len(), 4);
        expect.end(first, true);
        assert_eq!(expect.values(0x2000).len(), 2);
        expect.end(second, true);
        assert_eq!(expect.values(0x2000), [Value::Leaf { shift: 0, bits: 1 << 54 | 0x77c, valid: true }]);
    }

    #[test]
    fn who_reads_may_find_what_was_right_since_it_began() {
        let mut expect = expect();
        expect.begin_reading(1);
        let begun = expect.begin((0x2000, 0x3000), READ_ONLY);
        expect.end(begun, true);
        for bits in [0x7fc, 0x77c] {
            assert_eq!(expect.of_reader(1).refuses((0x2000, 0x3000), 0, bits), None);
        }
        expect.end_reading(1);
        assert_eq!(expect.of_reader(1).refuses((0x2000, 0x3000), 0, 0x7fc), Some(0x2000));
    }

    #[test]
    fn a_call_that_failed_leaves_nothing() {
        let mut expect = expect();
        let begun = expect.begin((0, 0x10000), Effect::Set(Value::None));
        assert_eq!(expect.refuses_fault((0x1000, 0x2000)), None);
        expect.end(begun, false);
        assert_eq!(expect.refuses_fault((0x1000, 0x2000)), Some(0x1000));
    }
}
