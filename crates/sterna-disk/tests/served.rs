//! Disks that QEMU's own NBD server serves.

#![allow(clippy::unwrap_used, reason = "functions of a test")]

use std::ops::Range;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output};
use std::time::{Duration, Instant};

use sterna_disk::blocks::BLOCK_BYTES;
use sterna_disk::copy::{self, Copied, Sink};
use sterna_disk::nbd::{BASE_ALLOCATION, Client, HOLE, IN_BITMAP, NbdError, ZERO, dirty_bitmap};

const MEBIBYTE: u64 = 1 << 20;
const SIZE: u64 = 64 * MEBIBYTE;

/// An image, and a server of it if there is one.
struct Disk {
    folder: tempfile::TempDir,
    server: Option<Child>,
}

impl Disk {
    /// An empty one; nothing, with a word, where nothing makes images.
    fn new(format: &str) -> Option<Self> {
        let disk = Self { folder: tempfile::tempdir().unwrap(), server: None };
        let size = SIZE.to_string();
        let mut create = Command::new("qemu-img");
        match create.args(["create", "-f", format]).arg(disk.image()).arg(size).output() {
            Ok(output) => assert!(output.status.success(), "{output:?}"),
            Err(error) => {
                eprintln!("skipped: no qemu-img: {error}");
                return None;
            }
        }
        Some(disk)
    }

    fn image(&self) -> PathBuf {
        self.folder.path().join("image")
    }

    fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// Serves it anew, with these options.
    fn serve(&mut self, options: &[&str]) {
        self.end();
        let socket = self.socket();
        let mut server = Command::new("qemu-nbd");
        server
            .args(["--persistent", "--shared", "2", "--export-name", "disk", "--socket"])
            .arg(&socket);
        self.server = Some(server.args(options).arg(self.image()).spawn().unwrap());
    }

    fn end(&mut self) {
        if let Some(mut server) = self.server.take() {
            // So that it writes its bitmaps.
            let id = rustix::process::Pid::from_child(&server);
            rustix::process::kill_process(id, rustix::process::Signal::TERM).unwrap();
            server.wait().unwrap();
        }
    }

    fn open(&self, contexts: &[&str]) -> Result<Client<UnixStream>, NbdError> {
        let deadline = Instant::now() + Duration::from_secs(60);
        let stream = loop {
            match UnixStream::connect(self.socket()) {
                Ok(stream) => break stream,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
            std::thread::sleep(Duration::from_millis(10));
        };
        Client::open(stream, "disk", contexts)
    }
}

impl Drop for Disk {
    fn drop(&mut self) {
        self.end();
    }
}

fn run(program: &str, arguments: &[&str], image: &Path) -> Output {
    let output = Command::new(program).args(arguments).arg(image).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    output
}

/// Extents with what is common to neighbours put together: where each ends, in mebibytes, and its flags.
fn status(client: &mut Client<UnixStream>, context: usize) -> Vec<(u64, u32)> {
    let mut extents: Vec<(u64, u32)> = Vec::new();
    let each = |extent: sterna_disk::nbd::Extent| {
        let end = extent.bytes.end / MEBIBYTE;
        match extents.last_mut() {
            // `qemu-img` allocates the first block of a raw image.
            _ if end == 0 => {}
            Some(last) if last.1 == extent.flags => last.0 = end,
            _ => extents.push((end, extent.flags)),
        }
    };
    client.status(context, 0..SIZE, each).unwrap();
    extents
}

#[test]
fn what_is_written_is_read_and_holes_stay_holes() {
    for format in ["raw", "qcow2"] {
        let Some(mut disk) = Disk::new(format) else { return };
        disk.serve(&["--format", format, "--discard", "unmap"]);
        let mut client = disk.open(&[BASE_ALLOCATION]).unwrap();
        assert!(client.export().writable && client.export().size_bytes == SIZE);
        let data: Vec<u8> = (0..3 * MEBIBYTE).map(|at| (at % 251) as u8).collect();
        client.write(5 * MEBIBYTE, &data).unwrap();
        client.write(40 * MEBIBYTE, &data).unwrap();
        client.write_zeroes(41 * MEBIBYTE, 2 * MEBIBYTE).unwrap();
        client.flush().unwrap();
        let none = HOLE | ZERO;
        let found = status(&mut client, 0);
        assert_eq!(found, [(5, none), (8, 0), (40, none), (41, 0), (64, none)], "{format}");
        // Larger than a request may be, with content and without.
        let mut read = vec![7; usize::try_from(SIZE).unwrap()];
        client.read(0, &mut read).unwrap();
        drop(client);
        disk.end();
        let converted = disk.folder.path().join("converted");
        let image = disk.image();
        let arguments = ["convert", "-f", format, "-O", "raw", image.to_str().unwrap()];
        run("qemu-img", &arguments, &converted);
        assert!(read == std::fs::read(converted).unwrap(), "{format}");
        assert_eq!(read[5 << 20..8 << 20], data);
        if format == "qcow2" {
            run("qemu-img", &["check", "-f", format], &image);
        }
    }
}

#[test]
fn a_bitmap_tells_what_was_written_since_it_was_begun() {
    let Some(mut disk) = Disk::new("qcow2") else { return };
    run("qemu-io", &["-f", "qcow2", "-c", "write 1M 8M"], &disk.image());
    let image = disk.image();
    let bitmap = |word: &str| {
        let arguments = ["bitmap", word, "-f", "qcow2", image.to_str().unwrap()];
        run("qemu-img", &arguments, Path::new("round-1"));
    };
    bitmap("--add");
    run("qemu-io", &["-f", "qcow2", "-c", "write 2M 1M", "-c", "write -z 20M 4M"], &image);
    bitmap("--disable");
    run("qemu-io", &["-f", "qcow2", "-c", "write 30M 1M"], &image);
    disk.serve(&["--format", "qcow2", "--read-only", "--bitmap", "round-1"]);
    let context = dirty_bitmap("round-1");
    let mut client = disk.open(&[BASE_ALLOCATION, &context]).unwrap();
    assert!(!client.export().writable);
    let found = status(&mut client, 1);
    assert_eq!(found, [(2, 0), (3, IN_BITMAP), (20, 0), (24, IN_BITMAP), (64, 0)]);
    let error = client.write(0, &[1; 512]).unwrap_err();
    assert!(matches!(error, NbdError::Disk { operation: "writing", .. }), "{error}");
    client.read(0, &mut [0; 512]).unwrap();
    let none = disk.open(&[&dirty_bitmap("round-2")]).unwrap_err();
    assert!(matches!(&none, NbdError::NoContext(name) if name.ends_with("round-2")), "{none}");
}

/// Writes what it is given to another disk.
struct Other(Client<UnixStream>);

impl Sink for Other {
    type Error = NbdError;

    fn data(&mut self, offset: u64, content: &[u8]) -> Result<(), NbdError> {
        self.0.write(offset, content)
    }

    fn zeroes(&mut self, bytes: Range<u64>) -> Result<(), NbdError> {
        self.0.write_zeroes(bytes.start, bytes.end - bytes.start)
    }
}

#[test]
fn two_rounds_make_a_disk_of_a_disk() {
    for format in ["raw", "qcow2"] {
        // Bitmaps outlive the server in images of this format only.
        let (Some(mut from), Some(mut to)) = (Disk::new("qcow2"), Disk::new(format)) else {
            return;
        };
        let (image, other) = (from.image(), to.image());
        let written = ["-f", "qcow2", "-c", "write -P 7 1M 8M", "-c", "write -P 0 12M 2M"];
        run("qemu-io", &written, &image);
        to.serve(&["--format", format, "--discard", "unmap"]);
        let mut sink = Other(to.open(&[]).unwrap());
        from.serve(&["--format", "qcow2", "--read-only"]);
        let mut source = from.open(&[BASE_ALLOCATION]).unwrap();
        let blocks = copy::allocated(&mut source, 0).unwrap();
        let copied = copy::copy(&mut source, 0, &blocks, &mut sink).unwrap();
        // The zeroes that were written as such are in no hole, and are found by reading.
        assert_eq!(copied, Copied { data: 8 * MEBIBYTE, zeroes: 2 * MEBIBYTE });
        drop(source);
        from.end();

        let bitmap = |word: &str| {
            let arguments = ["bitmap", word, "-f", "qcow2", image.to_str().unwrap()];
            run("qemu-img", &arguments, Path::new("round-1"));
        };
        bitmap("--add");
        // Within a block, and across two; content becomes zeroes, in a hole and outside.
        let words =
            ["write -P 9 2M 512", "write -P 5 20576k 64k", "write -z 4M 1M", "discard 6M 1M"];
        let words: Vec<&str> = words.iter().flat_map(|word| ["-c", word]).collect();
        run("qemu-io", &[&["-f", "qcow2"][..], &words].concat(), &image);
        bitmap("--disable");
        from.serve(&["--format", "qcow2", "--read-only", "--bitmap", "round-1"]);
        let mut source = from.open(&[BASE_ALLOCATION, &dirty_bitmap("round-1")]).unwrap();
        let blocks = copy::written(&mut source, 1).unwrap();
        assert_eq!(blocks.count(), 1 + 2 + 16 + 16);
        let copied = copy::copy(&mut source, 0, &blocks, &mut sink).unwrap();
        assert_eq!(copied.data + copied.zeroes, 35 * BLOCK_BYTES);
        assert!((2 * BLOCK_BYTES..=3 * BLOCK_BYTES).contains(&copied.data), "{copied:?}");
        sink.0.flush().unwrap();
        drop((source, sink));
        from.end();
        to.end();
        let arguments = ["compare", "-f", "qcow2", "-F", format, image.to_str().unwrap()];
        run("qemu-img", &arguments, &other);
    }
}
