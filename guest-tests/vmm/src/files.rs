//! Words of the host's command line that say what a Linux realm is made of.
//!
//! Invariant: what is not as it has to be is `None`.

/// Where a file lies, and its size, by `ADDRESS,SIZE`, in decimal digits or in hexadecimal ones behind `0x`.
pub fn place(text: &str) -> Option<(u64, u64)> {
    let (start, size) = text.split_once(',')?;
    number(start).zip(number(size))
}

fn number(text: &str) -> Option<u64> {
    let (digits, radix) = text.strip_prefix("0x").map_or((text, 10), |digits| (digits, 16));
    // A sign is no digit.
    let are_digits = digits.bytes().all(|byte| byte.is_ascii_alphanumeric());
    if are_digits { u64::from_str_radix(digits, radix).ok() } else { None }
}

/// The words of the realm's command line: those behind the first word `--` of the host's.
pub fn words(bootargs: &str) -> impl Iterator<Item = &str> {
    bootargs.split_ascii_whitespace().skip_while(|word| *word != "--").skip(1)
}

#[cfg(test)]
mod tests {
    use std::vec::Vec;

    use super::*;

    #[test]
    fn a_place_has_an_address_and_a_size() {
        assert_eq!(place("0x50000000,43765696"), Some((0x5000_0000, 43_765_696)));
        assert_eq!(place("4096,0xA0"), Some((4096, 160)));
        for text in
            ["", "1", "1,", ",1", "0x,1", "1,2,3", "+1,2", "0x-1,2", "1 ,2", "0x10000000000000000,1", "12z,1"]
        {
            assert_eq!(place(text), None, "{text}");
        }
    }

    #[test]
    fn the_words_of_the_realm_are_behind_two_dashes() {
        assert_eq!(words("a=1 --  b c -- d").collect::<Vec<_>>(), ["b", "c", "--", "d"]);
        assert_eq!(words("a --b ---").count(), 0);
        assert_eq!(words("").count(), 0);
    }
}
