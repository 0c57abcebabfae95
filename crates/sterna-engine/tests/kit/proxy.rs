//! A link that can be cut, stalled and corrupted: a TCP proxy in front of a destination.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

/// What a link does to what it carries.
#[derive(Default)]
pub(crate) struct Rules {
    /// Bytes that still pass, both directions and all connections together; then the link is cut.
    pub(crate) cut_after: AtomicU64,
    /// The byte towards the destination, counted over all connections, that is flipped.
    pub(crate) flip_at: AtomicU64,
    /// No connection is accepted, none lives.
    pub(crate) down: AtomicBool,
    passed: AtomicU64,
    forward: AtomicU64,
    connections: Mutex<Vec<TcpStream>>,
}

/// The proxy; its threads end with the process.
pub(crate) struct Proxy {
    pub(crate) address: SocketAddr,
    pub(crate) rules: Arc<Rules>,
}

impl Proxy {
    pub(crate) fn to(target: SocketAddr) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).unwrap();
        let address = listener.local_addr().unwrap();
        let rules = Arc::new(Rules::default());
        rules.cut_after.store(u64::MAX, Ordering::SeqCst);
        rules.flip_at.store(u64::MAX, Ordering::SeqCst);
        let shared = Arc::clone(&rules);
        thread::spawn(move || {
            for inner in listener.incoming() {
                let Ok(inner) = inner else { continue };
                if shared.down.load(Ordering::SeqCst) {
                    continue;
                }
                let Ok(outer) = TcpStream::connect(target) else { continue };
                shared.pump(&inner, &outer, Direction::Forward);
                shared.pump(&outer, &inner, Direction::Back);
            }
        });
        Self { address, rules }
    }

    pub(crate) fn passed(&self) -> u64 {
        self.rules.passed.load(Ordering::SeqCst)
    }

    pub(crate) fn forward(&self) -> u64 {
        self.rules.forward.load(Ordering::SeqCst)
    }

    pub(crate) fn cut(&self) {
        self.rules.cut();
    }

    pub(crate) fn mend(&self) {
        self.rules.cut_after.store(u64::MAX, Ordering::SeqCst);
        self.rules.down.store(false, Ordering::SeqCst);
    }

    /// Does something over this link, which is mended a while after it was cut: a move at
    /// commitment waits for that.
    pub(crate) fn mended_during<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let worker = scope.spawn(work);
            while !worker.is_finished() {
                thread::sleep(Duration::from_millis(20));
                if self.rules.down.load(Ordering::SeqCst) {
                    thread::sleep(Duration::from_millis(100));
                    self.mend();
                }
            }
            worker.join().unwrap()
        })
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Direction {
    Forward,
    Back,
}

impl Rules {
    pub(crate) fn cut(&self) {
        self.down.store(true, Ordering::SeqCst);
        for connection in self.connections.lock().unwrap().drain(..) {
            let _ = connection.shutdown(Shutdown::Both);
        }
    }

    fn pump(self: &Arc<Self>, from: &TcpStream, to: &TcpStream, direction: Direction) {
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let mut both = self.connections.lock().unwrap();
        both.extend([from.try_clone().unwrap(), to.try_clone().unwrap()]);
        drop(both);
        let rules = Arc::clone(self);
        thread::spawn(move || {
            let mut buffer = vec![0; 16 << 10];
            while let Ok(count @ 1..) = from.read(&mut buffer) {
                let bytes = &mut buffer[..count];
                let length = count as u64;
                if direction == Direction::Forward {
                    let start = rules.forward.fetch_add(length, Ordering::SeqCst);
                    let flip = rules.flip_at.load(Ordering::SeqCst);
                    if (start..start + length).contains(&flip) {
                        bytes[usize::try_from(flip - start).unwrap()] ^= 1;
                    }
                }
                let start = rules.passed.fetch_add(length, Ordering::SeqCst);
                let allowed = rules.cut_after.load(Ordering::SeqCst).saturating_sub(start);
                let pass = usize::try_from(allowed.min(length)).unwrap();
                if to.write_all(&bytes[..pass]).is_err() {
                    break;
                }
                if pass < count {
                    rules.cut();
                    break;
                }
            }
            let _ = to.shutdown(Shutdown::Write);
        });
    }
}
