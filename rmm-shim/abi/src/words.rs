//! Values in words, for people: each field of a command's registers with its name, each encoding by its own.
//!
//! Invariant: every name is that of the definition itself, so there is no second list; whatever a register holds is shown, what is no
//! encoding as a number.

use core::fmt::{self, Debug, Write};

use crate::Version;

/// A value that can be shown in one word, without a blank.
pub trait Words {
    /// Writes it.
    ///
    /// # Errors
    /// Those of `to`.
    fn write(&self, to: &mut dyn Write) -> fmt::Result;
}

/// Who is given each field of some registers, in their order, with its name.
pub type Each<'a> = &'a mut dyn FnMut(&'static str, &dyn Words);

impl Words for u64 {
    fn write(&self, to: &mut dyn Write) -> fmt::Result {
        write!(to, "{self:#x}")
    }
}

impl Words for u32 {
    fn write(&self, to: &mut dyn Write) -> fmt::Result {
        write!(to, "{self:#x}")
    }
}

impl Words for u8 {
    fn write(&self, to: &mut dyn Write) -> fmt::Result {
        write!(to, "{self:#x}")
    }
}

/// Levels and codes, which may be negative.
impl Words for i64 {
    fn write(&self, to: &mut dyn Write) -> fmt::Result {
        write!(to, "{self}")
    }
}

impl Words for Version {
    fn write(&self, to: &mut dyn Write) -> fmt::Result {
        write!(to, "{}.{}", self.major, self.minor)
    }
}

/// Bytes in the order of memory, as a challenge or a hash is shown.
impl Words for [u64; 8] {
    fn write(&self, to: &mut dyn Write) -> fmt::Result {
        to.write_str("0x")?;
        self.iter().flat_map(|word| word.to_le_bytes()).try_for_each(|byte| write!(to, "{byte:02x}"))
    }
}

/// The name of a variant as the specification writes it: `ErrorInput` as `ERROR_INPUT`. What it holds stands behind it in brackets.
#[derive(Clone, Copy, Debug)]
pub struct Shouted<T>(pub T);

impl<T: Debug> Words for Shouted<T> {
    fn write(&self, to: &mut dyn Write) -> fmt::Result {
        write!(Shout { to, was_small: false }, "{:?}", self.0)
    }
}

struct Shout<'a> {
    to: &'a mut dyn Write,
    was_small: bool,
}

impl Write for Shout<'_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        for character in text.chars() {
            if character.is_ascii_uppercase() && self.was_small {
                self.to.write_char('_')?;
            }
            self.was_small = character.is_ascii_lowercase() || character.is_ascii_digit();
            self.to.write_char(character.to_ascii_uppercase())?;
        }
        Ok(())
    }
}

/// Names with `|` between them, then the bits without a name; 0 if there is nothing.
pub(crate) fn flags(to: &mut dyn Write, names: impl Iterator<Item = &'static str>, rest: u64) -> fmt::Result {
    let mut is_first = true;
    for name in names {
        to.write_str(if is_first { "" } else { "|" })?;
        to.write_str(name)?;
        is_first = false;
    }
    match (is_first, rest) {
        (true, 0) => to.write_char('0'),
        (_, 0) => Ok(()),
        (true, rest) => write!(to, "{rest:#x}"),
        (false, rest) => write!(to, "|{rest:#x}"),
    }
}

/// The first registers; those that are not given are zero.
pub(crate) fn first<const N: usize>(x: &[u64]) -> [u64; N] {
    core::array::from_fn(|number| x.get(number).copied().unwrap_or(0))
}

#[cfg(test)]
mod tests {
    extern crate std;
    use std::string::String;

    use super::*;
    use crate::v1_0::{psci, rmi, rsi};

    fn line(tell: impl FnOnce(Each<'_>)) -> String {
        let mut line = String::new();
        tell(&mut |name, value| {
            write!(line, "{}{name}=", if line.is_empty() { "" } else { " " }).unwrap();
            value.write(&mut line).unwrap();
        });
        line
    }

    #[test]
    fn a_realms_request_is_told_by_the_names_of_its_registers() {
        let x = [0x8000_0000, 0x8020_0000, 0, 1];
        let told = line(|each| rsi::input::tell(rsi::RsiCommand::IpaStateSet, &x, each));
        assert_eq!(told, "base=0x80000000 top=0x80200000 ripas=EMPTY flags=CHANGE_DESTROYED");
        let told = line(|each| rsi::output::tell(rsi::RsiCommand::IpaStateSet, &[0x8010_0000, 1], each));
        assert_eq!(told, "new_base=0x80100000 response=REJECT");
    }

    #[test]
    fn what_is_no_encoding_is_a_number() {
        let x = [0, 0, 7, 0b101];
        let told = line(|each| rsi::input::tell(rsi::RsiCommand::IpaStateSet, &x, each));
        assert_eq!(told, "base=0x0 top=0x0 ripas=0x7 flags=CHANGE_DESTROYED|0x4");
        let told = line(|each| rmi::input::tell(rmi::RmiCommand::PsciComplete, &[1, 2, 5], each));
        assert_eq!(told, "calling_rec=0x1 target_rec=0x2 status=5");
    }

    #[test]
    fn versions_codes_levels_and_flags_are_in_words() {
        let told = |command, x: &[u64]| line(|each| rmi::input::tell(command, x, each));
        assert_eq!(told(rmi::RmiCommand::Version, &[0x1_0000]), "req=0x10000");
        assert_eq!(
            line(|each| rmi::output::tell(rmi::RmiCommand::Version, &[0x1_0000; 2], each)),
            "lower=1.0 higher=1.0"
        );
        let denied = (-3i64) as u64;
        assert!(told(rmi::RmiCommand::PsciComplete, &[0, 0, denied]).ends_with("status=DENIED"));
        assert!(told(rmi::RmiCommand::RttCreate, &[0, 0, 0, u64::MAX]).ends_with("level=-1"));
        assert!(told(rmi::RmiCommand::DataCreate, &[0, 0, 0, 0, 1]).ends_with("src=0x0 flags=MEASURE"));
        let read = line(|each| rmi::output::tell(rmi::RmiCommand::RttReadEntry, &[3, 1, 0x1000, 1], each));
        assert_eq!(read, "walk_level=3 state=ASSIGNED desc=0x1000 ripas=RAM");
    }

    #[test]
    fn a_challenge_is_bytes() {
        let told = line(|each| {
            rsi::input::tell(rsi::RsiCommand::AttestationTokenInit, &[0x0807_0605_0403_0201], each)
        });
        assert!(
            told.starts_with("challenge=0x010203040506070800000000") && told.len() == 10 + 2 + 128,
            "{told}"
        );
        let told = line(|each| rsi::input::tell(rsi::RsiCommand::MeasurementExtend, &[1, 8, 0xff], each));
        assert!(told.starts_with("index=0x1 size=0x8 value=0xff00"), "{told}");
    }

    #[test]
    fn each_command_tells_as_many_fields_as_it_has() {
        // A value of several doublewords is one field.
        let count = |tell: &dyn Fn(Each<'_>)| {
            let mut count = 0;
            tell(&mut |_, _| count += 1);
            count
        };
        for &command in rmi::RmiCommand::ALL {
            assert_eq!(count(&|each| rmi::input::tell(command, &[], each)), command.inputs(), "{command:?}");
            assert_eq!(
                count(&|each| rmi::output::tell(command, &[], each)),
                command.outputs(),
                "{command:?}"
            );
        }
        for &command in rsi::RsiCommand::ALL {
            let expected = match command {
                rsi::RsiCommand::AttestationTokenInit => [1, 1],
                rsi::RsiCommand::MeasurementExtend => [3, 0],
                rsi::RsiCommand::MeasurementRead => [1, 1],
                _ => [command.inputs(), command.outputs()],
            };
            let told = [
                count(&|each| rsi::input::tell(command, &[], each)),
                count(&|each| rsi::output::tell(command, &[], each)),
            ];
            assert_eq!(told, expected, "{command:?}");
        }
        for &command in psci::PsciCommand::ALL {
            assert_eq!(count(&|each| psci::tell(command, &[], each)), command.inputs(), "{command:?}");
        }
    }

    #[test]
    fn statuses_are_shouted() {
        let shouted = |value: &dyn Words| {
            let mut text = String::new();
            value.write(&mut text).unwrap();
            text
        };
        assert_eq!(shouted(&Shouted(rmi::RmiStatus::ErrorRtt(3))), "ERROR_RTT(3)");
        assert_eq!(shouted(&Shouted(rsi::RsiStatus::Success)), "SUCCESS");
        assert_eq!(shouted(&Shouted(psci::PsciReturnCode::NotSupported)), "NOT_SUPPORTED");
        assert_eq!(shouted(&Shouted(rmi::RmiHashAlgorithm::Sha256)), "SHA256");
    }
}
