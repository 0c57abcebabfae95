//! Servers that keep to the protocol, and such that do not. One of QEMU's is in `tests/served.rs`.

use super::*;
use std::io;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;

/// What a server says, whatever it is asked.
#[derive(Default)]
struct Script(Vec<u8>);

impl Script {
    fn begun() -> Self {
        let mut script = Self::default();
        script.0.extend(b"NBDMAGICIHAVEOPT\0\x03");
        script.option(8, 1, b"");
        script
    }

    /// A disk of `size` bytes that can be written, flushed and zeroed.
    fn open(size: u64) -> Self {
        let mut script = Self::begun();
        script.export(size);
        script
    }

    fn export(&mut self, size: u64) {
        let mut info = vec![0, 0];
        info.extend(size.to_be_bytes());
        info.extend((1u16 | 1 << 2 | 1 << 6).to_be_bytes());
        self.option(7, 3, &info);
        self.option(7, 1, b"");
    }

    fn with_context(number: u32, name: &str) -> Self {
        let mut script = Self::begun();
        let mut data = number.to_be_bytes().to_vec();
        data.extend(name.as_bytes());
        script.option(10, 4, &data);
        script.option(10, 1, b"");
        script.export(1 << 20);
        script
    }

    fn option(&mut self, option: u32, kind: u32, data: &[u8]) {
        self.0.extend(0x0003_e889_0455_65a9_u64.to_be_bytes());
        for number in [option, kind, u32::try_from(data.len()).unwrap()] {
            self.0.extend(number.to_be_bytes());
        }
        self.0.extend(data);
    }

    fn chunk(mut self, done: bool, kind: u16, cookie: u64, payload: &[u8]) -> Self {
        self.0.extend(0x668e_33ef_u32.to_be_bytes());
        self.0.extend(u16::from(done).to_be_bytes());
        self.0.extend(kind.to_be_bytes());
        self.0.extend(cookie.to_be_bytes());
        self.0.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
        self.0.extend(payload);
        self
    }

    fn data(self, done: bool, offset: u64, data: &[u8]) -> Self {
        let payload = [&offset.to_be_bytes()[..], data].concat();
        self.chunk(done, 1, 1, &payload)
    }

    fn zeroes(self, done: bool, offset: u64, length: u32) -> Self {
        let payload = [&offset.to_be_bytes()[..], &length.to_be_bytes()].concat();
        self.chunk(done, 2, 1, &payload)
    }

    fn status(self, context: u32, extents: &[(u32, u32)]) -> Self {
        let mut payload = context.to_be_bytes().to_vec();
        for (length, flags) in extents {
            payload.extend(length.to_be_bytes());
            payload.extend(flags.to_be_bytes());
        }
        self.chunk(true, 5, 1, &payload)
    }

    /// Says it all; returns what was said to it.
    fn serve(self) -> (UnixStream, JoinHandle<Vec<u8>>) {
        let (client, mut server) = UnixStream::pair().unwrap();
        let served = std::thread::spawn(move || {
            let mut reader = server.try_clone().unwrap();
            server.write_all(&self.0).unwrap();
            server.shutdown(std::net::Shutdown::Write).unwrap();
            let mut heard = Vec::new();
            reader.read_to_end(&mut heard).unwrap();
            heard
        });
        (client, served)
    }

    fn client(self, contexts: &[&str]) -> Result<Client<UnixStream>, NbdError> {
        Client::open(self.serve().0, "disk", contexts)
    }

    fn read(self, length: usize) -> Result<Vec<u8>, NbdError> {
        let mut buffer = vec![9; length];
        self.client(&[])?.read(4096, &mut buffer).map(|()| buffer)
    }

    fn ask(self, bytes: Range<u64>) -> Result<Vec<(u64, u32)>, NbdError> {
        let mut extents = Vec::new();
        let mut client = self.client(&[BASE_ALLOCATION])?;
        client.status(0, bytes, |extent| extents.push((extent.bytes.end, extent.flags)))?;
        Ok(extents)
    }
}

use std::ops::Range;

/// What the protocol has against an answer.
fn broken<T: std::fmt::Debug>(result: Result<T, NbdError>) -> &'static str {
    match result {
        Err(NbdError::Protocol(what)) => what,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_disk_is_opened_and_closed_in_the_words_of_the_protocol() {
    let (stream, served) = Script::open(1 << 30).serve();
    let client = Client::open(stream, "disk", &[]).unwrap();
    let export = Export { size_bytes: 1 << 30, writable: true, writes_zeroes: true, flushes: true };
    assert_eq!(client.export(), export);
    drop(client);
    let heard = served.join().unwrap();
    let mut expected = b"\0\0\0\x03IHAVEOPT\0\0\0\x08\0\0\0\0".to_vec();
    expected.extend(b"IHAVEOPT\0\0\0\x07\0\0\0\x0a\0\0\0\x04disk\0\0");
    expected.extend(b"\x25\x60\x95\x13\0\0\0\x02\0\0\0\0\0\0\0\x01");
    expected.extend([0; 12]);
    assert_eq!(heard, expected);
}

#[test]
fn content_comes_in_parts() {
    let script = Script::open(1 << 20).data(false, 4096, b"abc").zeroes(false, 4099, 2);
    let read = script.data(true, 4101, b"d").read(6).unwrap();
    assert_eq!(read, b"abc\0\0d");
}

#[test]
fn content_that_was_not_asked_for_is_none() {
    let open = || Script::open(1 << 20);
    for script in [
        open().data(true, 4096, b"abcde"),
        open().data(true, 4095, b"abcd"),
        open().data(false, 4096, b"abc").data(true, 4096, b"abc"),
        open().data(false, 4097, b"bcd").data(true, 4096, b"a"),
        open().zeroes(true, 4096, u32::MAX),
        open().zeroes(true, u64::MAX, 4),
    ] {
        assert_eq!(broken(script.read(4)), "content that was not asked for");
    }
    assert_eq!(broken(open().data(true, 4096, b"abc").read(4)), "content is missing");
    assert_eq!(broken(open().chunk(true, 0, 1, b"").read(4)), "content is missing");
    let other = open().chunk(true, 0, 2, b"").read(4);
    assert_eq!(broken(other), "an answer to another request");
    assert_eq!(broken(open().status(0, &[(1, 0)]).read(4)), "a status as content");
    assert_eq!(broken(open().chunk(true, 7, 1, b"").read(4)), "a part of an answer that is none");
    // Longer than anything that is asked for: nothing is kept for it.
    let mut endless = open();
    endless.0.extend(b"\x66\x8e\x33\xef\0\x01\0\x05\0\0\0\0\0\0\0\x01\xff\xff\xff\xfc");
    assert_eq!(broken(endless.read(4)), "a part of an answer that is none");
}

#[test]
fn an_error_of_the_disk_is_told_and_the_connection_goes_on() {
    let full = [&28u32.to_be_bytes()[..], &[0, 2], b"no"].concat();
    let mut script = Script::open(1 << 20).chunk(true, 1 << 15 | 1, 1, &full);
    script.0.extend(b"\x67\x44\x66\x98\0\0\0\0\0\0\0\0\0\0\0\x02");
    let mut client = script.client(&[]).unwrap();
    let error = client.write(8192, b"x").unwrap_err();
    assert!(error.is_full(), "{error}");
    let text = "writing at byte 8192 of the disk failed: No space left on device (os error 28)";
    assert_eq!(error.to_string(), text);
    client.flush().unwrap();
}

#[test]
fn what_is_not_on_the_disk_is_not_even_asked_for() {
    let (stream, served) = Script::open(8192).serve();
    let mut client = Client::open(stream, "disk", &[]).unwrap();
    let outside = |result| matches!(result, Err(NbdError::Outside { size: 8192, .. }));
    assert!(outside(client.read(8191, &mut [0; 2])));
    assert!(outside(client.write(u64::MAX, &[0; 2])));
    assert!(outside(client.write_zeroes(0, 8193)));
    drop(client);
    // The handshake, and the goodbye.
    assert_eq!(served.join().unwrap().len(), 4 + 16 + 26 + 28);
}

#[test]
fn a_status_is_told_up_to_where_it_was_asked_for() {
    let script = Script::with_context(5, BASE_ALLOCATION).status(5, &[(4096, 0), (1 << 30, 3)]);
    assert_eq!(script.ask(0..16384).unwrap(), [(4096, 0), (16384, 3)]);
}

#[test]
fn a_status_that_makes_no_sense_is_refused() {
    let begun = || Script::with_context(5, BASE_ALLOCATION);
    let not_asked = "a status of what was not asked for";
    assert_eq!(broken(begun().status(5, &[(0, 0)]).ask(0..4096)), not_asked);
    assert_eq!(broken(begun().status(5, &[(4096, 0), (4096, 0)]).ask(0..4096)), not_asked);
    let other = begun().status(6, &[(4096, 0)]).ask(0..4096);
    assert_eq!(broken(other), "a status that tells of nothing");
    let content = begun().data(true, 0, b"abcd").ask(0..4096);
    assert_eq!(broken(content), "content as a status");
}

#[test]
fn whoever_is_no_server_of_disks_is_noticed() {
    let open = |script: Script| script.client(&[]).map(|client| client.export());
    let old = Script(b"NBDMAGIC\0\x00\x42\x02\x81\x86\x12\x53\0\0".to_vec());
    assert_eq!(broken(open(old)), "it does not greet as an NBD server of today");
    let simple = Script(b"NBDMAGICIHAVEOPT\0\0".to_vec());
    assert_eq!(broken(open(simple)), "it knows no fixed newstyle negotiation");
    let mut refusing = Script::begun();
    refusing.option(7, 1 << 31 | 6, b"no such export");
    let error = open(refusing).unwrap_err();
    assert_eq!(error.to_string(), "what serves the disk refuses the export: no such export");
    let mut talking = Script::begun();
    for _ in 0..100 {
        talking.option(7, 3, &[0, 3]);
    }
    assert_eq!(broken(open(talking)), "answers without end");
    let mut silent = Script::begun();
    silent.option(7, 1, b"");
    assert_eq!(broken(open(silent)), "it does not say what it serves");
    let hung_up = open(Script::begun()).unwrap_err();
    assert!(matches!(hung_up, NbdError::Connection(error)
        if error.kind() == io::ErrorKind::UnexpectedEof));
    let other = Script::with_context(5, "base:other").client(&[BASE_ALLOCATION]).unwrap_err();
    assert_eq!(other.to_string(), "what serves the disk knows no base:allocation");
}
