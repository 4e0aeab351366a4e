//! What the definitions of this crate are written with, so that each constant stands in one place.
//!
//! Invariant: a definition that contradicts itself (a size, an offset, a number of registers) does not compile.

/// An enumeration with encodings: a value outside it is refused.
macro_rules! enumeration {
    ($(#[$meta:meta])* $name:ident: $bits:ident {
        $($(#[$value_meta:meta])* $value:ident = $encoding:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr($bits)]
        pub enum $name {
            $($(#[$value_meta])* $value = $encoding,)+
        }

        impl $name {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$value,)+];

            /// The value that `bits` encode.
            ///
            /// # Errors
            ///
            /// [`Unknown`](crate::Unknown) if that is none.
            pub const fn from_bits(bits: $bits) -> Result<Self, $crate::Unknown> {
                match bits {
                    $($encoding => Ok(Self::$value),)+
                    unknown => Err($crate::Unknown(unknown as u64)),
                }
            }

            /// Its encoding.
            pub const fn bits(self) -> $bits {
                self as $bits
            }
        }

        impl $crate::words::Words for $name {
            fn write(&self, to: &mut dyn core::fmt::Write) -> core::fmt::Result {
                $crate::words::Shouted(*self).write(to)
            }
        }
    };
}

/// The commands of an interface: identifier, name, registers after X0 that are read, and that are written.
macro_rules! commands {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$command_meta:meta])* $command:ident = $fid:literal $text:literal $inputs:literal -> $outputs:literal,)+
    }) => {
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[repr(u32)]
        pub enum $name {
            $($(#[$command_meta])* $command = $fid,)+
        }

        impl $name {
            /// All of them, in the order of the specification.
            pub const ALL: &[Self] = &[$(Self::$command,)+];

            /// The command whose function identifier is W0 = `fid`, without the hint about SVE (see
            /// [`split_sve_hint`](crate::v1_0::split_sve_hint)).
            ///
            /// # Errors
            ///
            /// [`Unknown`](crate::Unknown) if that is none.
            pub const fn from_fid(fid: u32) -> Result<Self, $crate::Unknown> {
                match fid {
                    $($fid => Ok(Self::$command),)+
                    unknown => Err($crate::Unknown(unknown as u64)),
                }
            }

            /// Its function identifier.
            pub const fn fid(self) -> u32 {
                self as u32
            }

            /// Its name in the specification.
            pub const fn name(self) -> &'static str {
                match self { $(Self::$command => $text,)+ }
            }

            /// The number of registers, from X1 on, that it reads. Those above should be zero.
            pub const fn inputs(self) -> usize {
                match self { $(Self::$command => $inputs,)+ }
            }

            /// The number of registers, from X1 on, that it writes beside the status in X0. Those above are zeroed, up to X16 (B1.2).
            pub const fn outputs(self) -> usize {
                match self { $(Self::$command => $outputs,)+ }
            }
        }
    };
}

/// The registers from X1 on that a command reads (`inputs`) or writes (`outputs`), as fields. `as` names the encodings of one that is taken as it is;
/// `and` names the structures that are written by hand.
macro_rules! registers {
    ($count:ident of $commands:ident $(and $($other:ident),+)?; $($(#[$meta:meta])* $name:ident[$n:literal] {
        $($(#[$field_meta:meta])* $field:ident: $type:ty $(as $encodings:ty)?,)+
    })+) => {
        /// Tells `each` field of the registers of a command, those from X1 on being `x`. A command that has none here tells nothing.
        pub fn tell(command: $commands, x: &[u64], each: $crate::words::Each<'_>) {
            match command {
                $($commands::$name => $name::from_registers($crate::words::first(x)).tell(each),)+
                $($($commands::$other => $other::from_registers($crate::words::first(x)).tell(each),)+)?
                #[allow(unreachable_patterns, reason = "some interfaces have registers for each command")]
                _ => {}
            }
        }
        $(
        $(#[$meta])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub struct $name {
            $($(#[$field_meta])* pub $field: $type,)+
        }

        impl $name {
            /// The command.
            pub const COMMAND: $commands = $commands::$name;

            /// As they lie in X1 and above: any value is taken.
            pub fn from_registers([$($field),+]: [u64; $n]) -> Self {
                Self { $($field: $crate::Register::from_register($field),)+ }
            }

            /// X1 and above.
            pub fn to_registers(self) -> [u64; $n] {
                [$($crate::Register::to_register(self.$field)),+]
            }

            /// Tells each field.
            pub fn tell(&self, each: $crate::words::Each<'_>) {
                $(
                    let value: &dyn $crate::words::Words = &self.$field;
                    $(
                        let encoding = <$encodings>::from_bits(self.$field);
                        let value = encoding.as_ref().map_or(value, |encoding| encoding);
                    )?
                    each(stringify!($field), value);
                )+
            }
        }

        const _: () = assert!($commands::$name.$count() == $n);
    )+};
}

/// Flags in 64 bits. Bits without a name are kept, should be zero, and are what `contains_unknown_bits` finds.
macro_rules! flags {
    ($(#[$meta:meta])* $name:ident {
        $($(#$flag_meta:tt)* $flag:ident = $bit:expr,)+
    }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, Hash,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable,
        )]
        #[repr(transparent)]
        pub struct $name(u64);

        bitflags::bitflags! {
            impl $name: u64 {
                $($(#$flag_meta)* const $flag = 1 << $bit;)+
            }
        }

        impl $crate::Register for $name {
            fn from_register(bits: u64) -> Self {
                Self::from_bits_retain(bits)
            }
            fn to_register(self) -> u64 {
                self.bits()
            }
        }

        impl $crate::words::Words for $name {
            fn write(&self, to: &mut dyn core::fmt::Write) -> core::fmt::Result {
                let names = self.iter_names().map(|(name, _)| name);
                $crate::words::flags(to, names, self.bits() & !Self::all().bits())
            }
        }
    };
}

/// Numbers in some bits of a word of 64: `get`, `with`: lowest bit, width.
macro_rules! fields {
    ($(#[$meta:meta])* $name:ident {
        $($(#[$field_meta:meta])* $get:ident, $with:ident: $low:literal, $width:literal;)+
    }) => {
        $(#[$meta])*
        #[derive(
            Clone, Copy, Debug, Default, PartialEq, Eq, Hash,
            zerocopy::FromBytes, zerocopy::IntoBytes, zerocopy::KnownLayout, zerocopy::Immutable,
        )]
        #[repr(transparent)]
        pub struct $name(u64);

        impl $name {
            /// The bits that belong to a field.
            pub const DEFINED: u64 = $(Self::mask($low, $width))|+;

            /// From its encoding, reserved bits and all.
            pub const fn from_bits(bits: u64) -> Self {
                Self(bits)
            }

            /// Its encoding.
            pub const fn bits(self) -> u64 {
                self.0
            }

            /// The bits that are set though they belong to no field: they should be zero.
            pub const fn reserved(self) -> u64 {
                self.0 & !Self::DEFINED
            }

            const fn mask(low: u32, width: u32) -> u64 {
                ((1 << width) - 1) << low
            }

            $(
                $(#[$field_meta])*
                pub const fn $get(self) -> u64 {
                    self.0 >> $low & Self::mask(0, $width)
                }

                #[doc = concat!(
                    "With another value of [`", stringify!($get), "`](Self::", stringify!($get), "), of which the low ",
                    stringify!($width), " bits are taken."
                )]
                pub const fn $with(self, value: u64) -> Self {
                    Self(self.0 & !Self::mask($low, $width) | (value << $low) & Self::mask($low, $width))
                }
            )+
        }

        // No bit belongs to two.
        const _: () = assert!($name::DEFINED.count_ones() == 0 $(+ $width)+);
    };
}

/// Asserts the size of a structure and the offset of each of its members, in bytes.
macro_rules! layout {
    ($name:ident: $size:literal { $($field:ident: $offset:literal,)+ }) => {
        const _: () = {
            assert!(size_of::<$name>() == $size);
            $(assert!(core::mem::offset_of!($name, $field) == $offset);)+
        };

        impl $name {
            /// All bytes zero.
            pub const fn zeroed() -> Self {
                zerocopy::transmute!([0u8; $size])
            }
        }

        impl Default for $name {
            fn default() -> Self {
                Self::zeroed()
            }
        }
    };
}
