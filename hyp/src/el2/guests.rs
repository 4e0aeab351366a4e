//! What guests are shown in place of the machine's own, and what is seen of them: words of the command line.
//!
//! Invariant: none of it changes what EL2 itself believes of its CPUs, or what the host sees.

use core::fmt;

/// What guests read in identification registers in place of what the machine has.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Advertised {
    /// The level of FEAT_BBM (`ID_AA64MMFR2_EL1.BBM`).
    pub bbm: Option<u8>,
    /// `MIDR_EL1`: which part their CPUs are.
    pub midr: Option<u32>,
}

impl Advertised {
    /// A level of FEAT_BBM: 0, 2 or 3, which is level 2 without conflict aborts. Level 1 is for those who keep blocks in one size.
    pub fn parse_bbm(text: &str) -> Option<u8> {
        match text {
            "0" => Some(0),
            "2" => Some(2),
            "3" => Some(3),
            _ => None,
        }
    }

    /// A `MIDR_EL1`, in hexadecimal behind `0x`: 32 bits, and of a part that there can be (its architecture is not 0).
    pub fn parse_midr(text: &str) -> Option<u32> {
        const ARCHITECTURE: u32 = 0xf << 16;
        let digits = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X"))?;
        // A sign is no digit.
        let is_number = digits.bytes().all(|digit| digit.is_ascii_hexdigit());
        let midr = u32::from_str_radix(digits, 16).ok().filter(|_| is_number)?;
        (midr & ARCHITECTURE != 0).then_some(midr)
    }
}

impl fmt::Display for Advertised {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(level) = self.bbm {
            write!(f, "level {level} of FEAT_BBM")?;
        }
        if let Some(midr) = self.midr {
            write!(f, "{}MIDR {midr:#010x}", if self.bbm.is_some() { ", " } else { "" })?;
        }
        Ok(())
    }
}

/// What is told of guests, by a call each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traced {
    /// The calls of realms: RSI, PSCI and SMCCC.
    pub rsi: bool,
    /// The calls of their host: RMI.
    pub rmi: bool,
    /// What becomes of the RIPAS of their memory.
    pub ripas: bool,
}

impl Traced {
    /// Nothing.
    pub const NOTHING: Self = Self { rsi: false, rmi: false, ripas: false };

    /// A list of `rsi`, `rmi` and `ripas`, with commas between them.
    pub fn parse(text: &str) -> Option<Self> {
        let mut traced = Self::NOTHING;
        for word in text.split(',') {
            match word {
                "rsi" => traced.rsi = true,
                "rmi" => traced.rmi = true,
                "ripas" => traced.ripas = true,
                _ => return None,
            }
        }
        Some(traced)
    }

    /// Whether that is something.
    pub const fn is_something(self) -> bool {
        self.rsi || self.rmi || self.ripas
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_those_that_change_what_a_guest_does() {
        let parsed = ["0", "2", "3"].map(Advertised::parse_bbm);
        assert_eq!(parsed, [Some(0), Some(2), Some(3)]);
        for wrong in ["", "1", "4", "02", "-1", "auto", "2,3"] {
            assert_eq!(Advertised::parse_bbm(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_part_is_a_number_of_32_bits() {
        assert_eq!(Advertised::parse_midr("0x410fd842"), Some(0x410f_d842));
        assert_eq!(Advertised::parse_midr("0x000F0510"), Some(0x000f_0510));
        for wrong in ["", "0x", "410fd842", "0x1410fd842", "0x4100d842", "0x+10fd842", "0x410fd84g", "é"] {
            assert_eq!(Advertised::parse_midr(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_is_traced_is_a_list() {
        assert_eq!(Traced::parse("rsi"), Some(Traced { rsi: true, ..Traced::NOTHING }));
        assert_eq!(Traced::parse("ripas,rsi,rmi"), Some(Traced { rsi: true, rmi: true, ripas: true }));
        assert!(!Traced::NOTHING.is_something());
        for wrong in ["", "rsi,", "all", "rsi rmi", "RSI"] {
            assert_eq!(Traced::parse(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn what_guests_are_shown_is_one_line() {
        let shown = |bbm, midr| std::string::ToString::to_string(&Advertised { bbm, midr });
        assert_eq!(shown(Some(2), Some(0x410f_d842)), "level 2 of FEAT_BBM, MIDR 0x410fd842");
        assert_eq!(shown(None, Some(0x000f_0510)), "MIDR 0x000f0510");
    }
}
