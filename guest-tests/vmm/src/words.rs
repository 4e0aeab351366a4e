//! What host and realm write into memory that they share, so that each knows that the other has seen it.
//!
//! Invariant: a word and its complement are never the word of the same place under the same seed.

/// Odd, so that no two of 2^64 places have the same word.
const FACTOR: u64 = 0x9e37_79b9_7f4a_7c15;

/// Doubleword number `place` of what a realm writes under `seed`. The host answers by the complement.
pub const fn word(seed: u64, place: u64) -> u64 {
    seed.wrapping_add(place).wrapping_mul(FACTOR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_those_of_the_contract_and_differ_by_place() {
        assert_eq!((word(0, 0), word(0, 1), word(1, 0)), (0, FACTOR, FACTOR));
        assert_eq!(word(u64::MAX, 2), FACTOR);
        assert!((0..1000).all(|place| word(7, place) != word(7, place + 1)));
    }
}
