//! Open enumerations: the names that this version knows, and any other name, kept. How the format grows.

use serde::{Deserialize, Serialize};

/// Names known to this version, and any other name, kept: an open enumeration.
macro_rules! open_enum {
    ($(#[$meta:meta])* $name:ident { $($(#[$doc:meta])* $variant:ident = $text:literal,)* }) => {
        $(#[$meta])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(from = "String", into = "String")]
        pub enum $name {
            $($(#[$doc])* $variant,)*
            /// A name that this version does not know.
            Other(String),
        }

        impl $name {
            /// The name as written.
            pub fn as_str(&self) -> &str {
                match self {
                    $(Self::$variant => $text,)*
                    Self::Other(name) => name,
                }
            }

            /// Whether this version knows it.
            pub fn is_known(&self) -> bool {
                !matches!(self, Self::Other(_))
            }
        }

        impl From<String> for $name {
            fn from(name: String) -> Self {
                match name.as_str() {
                    $($text => Self::$variant,)*
                    _ => Self::Other(name),
                }
            }
        }

        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.as_str().to_owned()
            }
        }
    };
}

open_enum! {
    /// What a section holds.
    Kind {
        /// Which rows of which tensors change, and their clusters. Critical.
        Rows = "rows",
        /// The shared deltas. Critical.
        Deltas = "deltas",
        /// What undoes the fold on the exact base. Not critical.
        Residual = "residual",
        /// By which a descendant of the base is told without the base. Not critical.
        Sketch = "sketch",
    }
}

open_enum! {
    /// How a section is stored.
    Codec {
        /// As it is.
        Raw = "raw",
        /// One zstd frame.
        Zstd = "zstd",
        /// Two byte planes, the most significant first, then one zstd frame.
        Planes2Zstd = "planes2+zstd",
        /// Four byte planes, then one zstd frame.
        Planes4Zstd = "planes4+zstd",
        /// 16-bit words rotated left by one bit, then as `planes2+zstd`.
        Float2Zstd = "float2+zstd",
        /// 32-bit words rotated left by one bit, then as `planes4+zstd`.
        Float4Zstd = "float4+zstd",
    }
}

open_enum! {
    /// How closely a checkpoint must match the base.
    Level {
        /// Every touched tensor is the base's, byte for byte.
        Exact = "exact",
        /// A fine-tuned child of the base, within a signed tolerance.
        Descendant = "descendant",
        /// Any checkpoint of the base's architecture.
        Architecture = "architecture",
    }
}

impl Kind {
    /// Whether a reader must understand sections of this kind to apply the patch; `None` where the writer decides.
    pub fn critical(&self) -> Option<bool> {
        match self {
            Self::Rows | Self::Deltas => Some(true),
            Self::Residual | Self::Sketch => Some(false),
            Self::Other(_) => None,
        }
    }
}
