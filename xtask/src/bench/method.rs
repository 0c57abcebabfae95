//! The ways in which a guest can be moved: ours, and QEMU's best setting of each kind.

use serde_json::json;

/// How a guest is moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Method {
    /// Sterna as it is without any option: whichever of the following is foreseen to cost least
    SternaAuto,
    /// Sterna's pre-copy, two streams, TLS; pauses all the same where rounds no longer help
    Sterna,
    /// The same, with all RAM compared before the guest resumes
    SternaVerified,
    /// The same as `sterna`, with pages coded where that is faster
    SternaCompressed,
    /// The same, with all RAM compared before the guest resumes
    SternaCompressedVerified,
    /// Sterna's pre-copy, which slows the vCPUs down where rounds no longer help
    SternaThrottle,
    /// Sterna's hybrid: rounds while they pay, then the guest goes and the rest follows it
    SternaHybrid,
    /// Sterna's post-copy: the guest goes first
    SternaPostCopy,
    /// The same, with the pages that follow pushed in order of address
    SternaPostCopyLinear,
    /// Sterna's stop-and-copy
    SternaStopAndCopy,
    /// QEMU's pre-copy inside Sterna's move: two agents and TLS between; pauses all the same where
    /// rounds no longer help
    SternaNative,
    /// The same by multifd with two channels
    SternaNativeMultifd,
    /// QEMU's pre-copy, no limit of bandwidth, no compression, no TLS (as all of QEMU's)
    QemuPreCopy,
    /// QEMU's multifd with two channels
    QemuMultifd,
    /// The same, compressed by Zstandard at QEMU's level
    QemuMultifdZstd,
    /// The same, compressed by zlib at QEMU's level
    QemuMultifdZlib,
    /// QEMU's pre-copy that sends what changed of a page, with a cache of a quarter of a GiB
    QemuXbzrle,
    /// QEMU's pre-copy that slows the vCPUs down, by its defaults
    QemuAutoConverge,
    /// QEMU's post-copy after one pass of pre-copy; pages that are waited for have a channel of
    /// their own
    QemuPostCopy,
    /// The same with one channel for all pages, which is QEMU's default
    QemuPostCopyPlain,
}

const PRE_COPY: [&str; 4] = ["--algorithm", "pre-copy", "--when-stuck", "stop-and-copy"];
const PRE_COPY_VERIFIED: [&str; 5] =
    ["--algorithm", "pre-copy", "--when-stuck", "stop-and-copy", "--verify"];

const PRE_COPY_COMPRESSED: [&str; 6] =
    ["--algorithm", "pre-copy", "--when-stuck", "stop-and-copy", "--compress", "auto"];
const PRE_COPY_COMPRESSED_VERIFIED: [&str; 7] =
    ["--algorithm", "pre-copy", "--when-stuck", "stop-and-copy", "--compress", "auto", "--verify"];

/// Whose move it is, and with which settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum By {
    /// `sterna migrate` with these words.
    Sterna(&'static [&'static str]),
    /// QEMU's own.
    Qemu(Kind),
}

/// A kind of QEMU's migration.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    PreCopy,
    Multifd,
    MultifdZstd,
    MultifdZlib,
    Xbzrle,
    AutoConverge,
    PostCopy,
    PostCopyPlain,
}

impl Method {
    /// All algorithms of ours, and of QEMU's those that are the best of their kind.
    pub(crate) const POOL: [Self; 11] = [
        Self::SternaAuto,
        Self::Sterna,
        Self::SternaThrottle,
        Self::SternaHybrid,
        Self::SternaPostCopy,
        Self::SternaStopAndCopy,
        Self::SternaNative,
        Self::QemuPreCopy,
        Self::QemuMultifd,
        Self::QemuAutoConverge,
        Self::QemuPostCopy,
    ];

    /// Pre-copy with and without fewer bytes, ours and QEMU's.
    pub(crate) const BYTES: [Self; 7] = [
        Self::SternaCompressed,
        Self::Sterna,
        Self::QemuPreCopy,
        Self::QemuMultifd,
        Self::QemuMultifdZstd,
        Self::QemuMultifdZlib,
        Self::QemuXbzrle,
    ];

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::SternaAuto => "sterna",
            Self::Sterna => "sterna pre-copy",
            Self::SternaVerified => "sterna pre-copy verified",
            Self::SternaCompressed => "sterna pre-copy compressed",
            Self::SternaCompressedVerified => "sterna pre-copy compressed, verified",
            Self::SternaThrottle => "sterna throttle",
            Self::SternaHybrid => "sterna hybrid",
            Self::SternaPostCopy => "sterna post-copy",
            Self::SternaPostCopyLinear => "sterna post-copy linear",
            Self::SternaStopAndCopy => "sterna stop-and-copy",
            Self::SternaNative => "sterna native",
            Self::SternaNativeMultifd => "sterna native multifd",
            Self::QemuPreCopy => "qemu pre-copy",
            Self::QemuMultifd => "qemu multifd",
            Self::QemuMultifdZstd => "qemu multifd zstd",
            Self::QemuMultifdZlib => "qemu multifd zlib",
            Self::QemuXbzrle => "qemu xbzrle",
            Self::QemuAutoConverge => "qemu auto-converge",
            Self::QemuPostCopy => "qemu post-copy",
            Self::QemuPostCopyPlain => "qemu post-copy plain",
        }
    }

    pub(crate) fn by(self) -> By {
        match self {
            Self::SternaAuto => By::Sterna(&[]),
            // A guest that cannot converge shall be moved all the same: that is what is measured.
            Self::Sterna => By::Sterna(&PRE_COPY),
            Self::SternaVerified => By::Sterna(&PRE_COPY_VERIFIED),
            Self::SternaCompressed => By::Sterna(&PRE_COPY_COMPRESSED),
            Self::SternaCompressedVerified => By::Sterna(&PRE_COPY_COMPRESSED_VERIFIED),
            Self::SternaThrottle => {
                By::Sterna(&["--algorithm", "pre-copy", "--when-stuck", "throttle"])
            }
            Self::SternaHybrid => By::Sterna(&["--algorithm", "hybrid"]),
            Self::SternaPostCopy => By::Sterna(&["--algorithm", "post-copy"]),
            Self::SternaPostCopyLinear => {
                By::Sterna(&["--algorithm", "post-copy", "--push", "linear"])
            }
            Self::SternaStopAndCopy => By::Sterna(&["--algorithm", "stop-and-copy"]),
            Self::SternaNative => {
                By::Sterna(&["--algorithm", "native", "--when-stuck", "stop-and-copy"])
            }
            Self::SternaNativeMultifd => By::Sterna(&[
                "--algorithm",
                "native",
                "--native-mode",
                "multifd",
                "--when-stuck",
                "stop-and-copy",
            ]),
            Self::QemuPreCopy => By::Qemu(Kind::PreCopy),
            Self::QemuMultifd => By::Qemu(Kind::Multifd),
            Self::QemuMultifdZstd => By::Qemu(Kind::MultifdZstd),
            Self::QemuMultifdZlib => By::Qemu(Kind::MultifdZlib),
            Self::QemuXbzrle => By::Qemu(Kind::Xbzrle),
            Self::QemuAutoConverge => By::Qemu(Kind::AutoConverge),
            Self::QemuPostCopy => By::Qemu(Kind::PostCopy),
            Self::QemuPostCopyPlain => By::Qemu(Kind::PostCopyPlain),
        }
    }
}

impl Kind {
    /// The capabilities that both sides need.
    pub(crate) fn capabilities(self) -> &'static [&'static str] {
        match self {
            Self::PreCopy => &[],
            Self::Multifd | Self::MultifdZstd | Self::MultifdZlib => &["multifd"],
            Self::Xbzrle => &["xbzrle"],
            Self::AutoConverge => &["auto-converge"],
            Self::PostCopy => &["postcopy-ram", "postcopy-preempt"],
            Self::PostCopyPlain => &["postcopy-ram"],
        }
    }

    /// What is set besides, on both sides.
    pub(crate) fn parameters(self) -> serde_json::Value {
        match self {
            Self::Multifd => json!({ "multifd-channels": 2 }),
            Self::MultifdZstd => json!({ "multifd-channels": 2, "multifd-compression": "zstd" }),
            Self::MultifdZlib => json!({ "multifd-channels": 2, "multifd-compression": "zlib" }),
            Self::Xbzrle => json!({ "xbzrle-cache-size": 256 << 20 }),
            Self::PreCopy | Self::AutoConverge | Self::PostCopy | Self::PostCopyPlain => json!({}),
        }
    }

    /// Whether the guest goes before its pages once the first pass is over.
    pub(crate) fn goes_first(self) -> bool {
        matches!(self, Self::PostCopy | Self::PostCopyPlain)
    }
}
