//! Writes valid inputs of every target into its corpus, from which the fuzzer starts; and of one
//! of each only the beginning.

use serde::Serialize;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;
use sterna_api::{ApiError, ErrorCode, MoveRequest, STREAMS_DEFAULT};
use sterna_core::algorithm::AlgorithmName;
use sterna_core::balloon::Balloon;
use sterna_core::compress::Compress;
use sterna_core::limits::{Limits, WhenStuck};
use sterna_core::progress::Progress;
use sterna_core::push::PushOrder;
use sterna_core::receipt::{
    Coded, CodedPages, Downtime, Ending, PagesByCoding, RamCheck, Receipt, Round, StopReason,
    TrackedBy, Tracking, WireBytes,
};
use sterna_core::speed::VcpuSpeed;
use sterna_core::working_set::HoldBack;
use sterna_page::coding::{Coder, Encoders, code_bytes_max};
use sterna_page::{PAGE_SIZE, PageCount, PageRun, RamBlock, RamLayout, ram_digest};
use sterna_proto::control::{ControlHeader, ControlKind, encode_message};
use sterna_proto::inquiry::{Answer, Inquiry};
use sterna_proto::known::KnownHeader;
use sterna_proto::message::{
    Accept, ActivationTimes, Arrival, AttemptId, Coding, Envelope, Epoch, GuestId, JournalId,
    NativeMode, Offer, PageWaits, Reason, ReasonCode, Rest, ToDestination, ToSource, Verify,
};
use sterna_proto::pages::PageFrame;
use sterna_proto::preamble::{MoveToken, Preamble, PreambleAnswer, Role, VERSION_MAX};
use sterna_vmm::synthetic::{Registers, SyntheticConfig, WriterRegisters};
use uuid::Uuid;

type Seed = (&'static str, &'static str, Vec<u8>);

fn main() -> std::io::Result<()> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("corpus");
    for (target, name, bytes) in seeds() {
        let folder = root.join(target);
        std::fs::create_dir_all(&folder)?;
        std::fs::write(folder.join("cut"), &bytes[..bytes.len() / 8])?;
        std::fs::write(folder.join(format!("valid-{name}")), bytes)?;
    }
    Ok(())
}

fn seeds() -> Vec<Seed> {
    let mut seeds = preambles();
    seeds.extend(messages());
    seeds.extend(inquiries());
    seeds.push(("control_stream", "conversation", conversation()));
    seeds.extend(page_streams());
    seeds.extend(page_codes());
    seeds.push(("known_pages", "three", known_pages()));
    seeds.extend(definitions());
    seeds.extend(interface());
    seeds.extend(records());
    seeds.extend(monitor());
    seeds.extend(process());
    seeds.extend(scripts());
    seeds
}

fn text(value: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(value).expect("our own values can be written")
}

fn preambles() -> Vec<Seed> {
    let pages = Role::Pages { stream: 7, token: MoveToken([9; 16]) };
    let native = Role::Native { channel: 3, token: MoveToken([9; 16]) };
    let known = Role::Known { token: MoveToken([9; 16]) };
    let newer = Preamble { version_min: 1, version_max: 9, role: Role::Control };
    let welcome = PreambleAnswer::Welcome { version: VERSION_MAX };
    vec![
        ("preamble", "control", Preamble::new(Role::Control).encode().into()),
        ("preamble", "probe", Preamble::new(Role::Probe).encode().into()),
        ("preamble", "inquiry", Preamble::new(Role::Inquiry).encode().into()),
        ("preamble", "pages", Preamble::new(pages).encode().into()),
        ("preamble", "native", Preamble::new(native).encode().into()),
        ("preamble", "known", Preamble::new(known).encode().into()),
        ("preamble", "newer", newer.encode().into()),
        ("preamble_answer", "welcome", welcome.encode().into()),
    ]
}

fn attempt() -> AttemptId {
    AttemptId { guest: GuestId(Uuid::from_u128(7)), epoch: Epoch(3) }
}

fn envelope<M>(body: M) -> Envelope<M> {
    Envelope { attempt: attempt(), asked_of: None, body }
}

fn reason() -> Reason {
    Reason::new(ReasonCode::NoRoom, "1 GiB wanted, 0 free")
}

fn offer() -> Offer {
    let block = RamBlock { name: "ram0".into(), size_bytes: 1 << 30, host_page_bytes: 4096 };
    Offer {
        name: "web-1".into(),
        layout: RamLayout::new(vec![block]).expect("one block of whole pages"),
        hypervisor: "qemu".into(),
        definition: definition(),
        wishes: None,
        algorithm: "pre-copy".into(),
        codings: vec![Coding::Absent, Coding::Zero, Coding::Raw],
        streams: 2,
        verify: Verify::RamDigest,
        host_cpu: None,
        native: None,
    }
}

fn accept() -> Accept {
    Accept {
        journal: JournalId(Uuid::from_u128(9)),
        token: MoveToken([7; 16]),
        streams: 2,
        codings: vec![Coding::Zero, Coding::Raw],
    }
}

fn times() -> ActivationTimes {
    ActivationTimes { load_us: 4210, digest_us: 0, record_us: 1350, activate_us: 1020 }
}

fn inquiries() -> Vec<Seed> {
    let refusal = Answer { reasons: vec![reason(); 2] };
    vec![
        ("inquiry", "plan", text(&Inquiry { attempt: attempt(), offer: offer() })),
        ("inquiry_answer", "yes", text(&Answer { reasons: Vec::new() })),
        ("inquiry_answer", "no", text(&refusal)),
    ]
}

fn messages() -> Vec<Seed> {
    let asked_of = Some(JournalId(Uuid::from_u128(9)));
    let commit = Envelope { asked_of, ..envelope(ToDestination::Commit) };
    let digest = Some(ram_digest([Some([1; 32])]));
    let owing = ToSource::Owing { times: times(), token: MoveToken([7; 16]), streams: 2 };
    let waits =
        PageWaits { pages: 31, total_us: 9100, median_us: 280, p99_us: 900, longest_us: 950 };
    let arrival = Arrival { digest, waits };
    let native = Offer {
        algorithm: "native".into(),
        codings: vec![Coding::Absent, Coding::Zero, Coding::Raw, Coding::Native],
        native: Some(NativeMode::MultifdZstd),
        ..offer()
    };
    let pages_lost = ToDestination::PagesLost { reason: reason() };
    vec![
        ("to_destination", "offer", text(&envelope(ToDestination::Offer(Box::new(offer()))))),
        ("to_destination", "offer-native", text(&envelope(ToDestination::Offer(Box::new(native))))),
        (
            "to_destination",
            "switchover-native",
            text(&envelope(ToDestination::Switchover { round: 5, rest: Rest::Native })),
        ),
        (
            "to_destination",
            "switchover",
            text(&envelope(ToDestination::Switchover { round: 5, rest: Rest::Owed })),
        ),
        ("to_destination", "commit", text(&commit)),
        ("to_destination", "abort", text(&envelope(ToDestination::Abort { reason: reason() }))),
        ("to_destination", "pages-lost", text(&envelope(pages_lost))),
        ("to_destination", "query", text(&envelope(ToDestination::Query))),
        ("to_destination", "farewell", text(&envelope(ToDestination::Farewell))),
        ("to_destination", "keep-alive", text(&envelope(ToDestination::KeepAlive))),
        ("to_source", "accept", text(&envelope(ToSource::Accept(accept())))),
        ("to_source", "refuse", text(&envelope(ToSource::Refuse { reasons: vec![reason(); 2] }))),
        (
            "to_source",
            "round",
            text(&envelope(ToSource::RoundReceived { round: 5, lacking: vec![(7, 2)] })),
        ),
        ("to_source", "ready", text(&envelope(ToSource::Ready { digest }))),
        (
            "to_source",
            "active",
            text(&envelope(ToSource::Active { times: times(), arrival: Some(arrival) })),
        ),
        ("to_source", "owing", text(&envelope(owing))),
        ("to_source", "never", text(&envelope(ToSource::Never { reason: reason() }))),
        ("to_source", "lost", text(&envelope(ToSource::Lost { reason: reason() }))),
    ]
}

fn frame(kind: ControlKind, number: u64, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(body.len()).expect("a short body");
    [&ControlHeader { kind, length, number }.encode(), body].concat()
}

fn conversation() -> Vec<u8> {
    let message = |body| encode_message(&envelope(body)).expect("a short message");
    let mark = message(ToDestination::Switchover { round: 5, rest: Rest::Owed });
    [
        frame(ControlKind::Message, 1, &mark),
        frame(ControlKind::Message, 1, &mark),
        frame(ControlKind::DeviceState { state_type: 1 }, 2, b"QEVM state"),
        frame(ControlKind::Message, 3, &message(ToDestination::Commit)),
    ]
    .concat()
}

fn page_streams() -> Vec<Seed> {
    let run = PageRun::new;
    let frames = [
        PageFrame::Raw(run(0, 256)),
        PageFrame::Zero(run(8, 3)),
        PageFrame::Raw(run(290, 20)),
        PageFrame::Absent(run(298, 4)),
        PageFrame::Mark { round: 0 },
        PageFrame::Raw(run(512, 128)),
        PageFrame::Coded { run: run(0, 20), coder: Coder::ZstdFast, length: 1 },
        PageFrame::Coded { run: run(20, 3), coder: Coder::Words, length: 1 },
        PageFrame::Known(run(25, 180)),
        PageFrame::OnDisk(run(40, 190)),
        PageFrame::Same(run(30, 40)),
        PageFrame::Changed { run: run(100, 150), length: 1 },
        PageFrame::Same(run(60, 40)),
        PageFrame::Coded { run: run(520, 9), coder: Coder::ZstdFast, length: 1 },
        PageFrame::Mark { round: 1 },
    ];
    let filled = |choice: u8, frames: &[PageFrame], fill: u8| {
        let with_fill = |frame: &PageFrame| [&frame.encode()[..], &[fill]].concat();
        [vec![choice], frames.iter().flat_map(with_fill).collect()].concat()
    };
    let stream = |choice, frames: &[PageFrame]| filled(choice, frames, 0x2a);
    let odd = [PageFrame::Raw(run(256, 9)), PageFrame::Zero(run(260, 2))];
    vec![
        ("page_stream", "one", stream(0, &frames)),
        ("page_stream", "second", stream(0b101, &odd)),
        // Codes of pages that do not lie side by side.
        ("page_stream", "apart", filled(0, &frames, 0x2b)),
    ]
}

fn known_pages() -> Vec<u8> {
    let halves = [3_u64, 0x1234_5678_9abc, u64::MAX];
    let header = KnownHeader { key: [7; 32], count: halves.len() as u64 };
    let halves = halves.iter().flat_map(|half| half.to_le_bytes());
    std::iter::once(3).chain(header.encode()).chain(halves).collect()
}

fn page_codes() -> Vec<Seed> {
    let mut page = [0; PAGE_SIZE];
    for (index, word) in (0..).zip(page.as_chunks_mut::<4>().0) {
        *word = u32::to_le_bytes(if index % 5 == 0 { 0x7fff_0000 + index % 700 } else { 0 });
    }
    let pages = [page, [7; PAGE_SIZE]];
    let seed = |(place, coder): (u8, Coder)| {
        let mut code = vec![0; code_bytes_max(pages.len())];
        let length = Encoders::default().encode(coder, &pages, &mut code);
        let name = match coder {
            Coder::Sparse => "sparse",
            Coder::Words => "words",
            Coder::Lz4 => "lz4",
            Coder::ZstdFast => "zstd-fast",
            Coder::ZstdStrong => "zstd-strong",
        };
        ("page_code", name, [&[place, 1], &code[..length]].concat())
    };
    (0..).zip(Coder::ALL).map(seed).collect()
}

fn definition() -> Value {
    json!({
        "name": "web-1", "vcpus": 2, "memory_bytes": 1u64 << 30, "machine": "pc-q35-10.0",
        "cpu": "max", "accelerator": "tcg", "console": "virtio", "append": "console=hvc0 quiet",
        "kernel": "/images/vmlinuz", "initrd": "/images/initrd", "huge_pages": false,
        "disks": [{"path": "/images/a.qcow2", "format": "qcow2", "cache": "none", "iops_max": 9}],
        "networks": [{"tap": "tap0", "mac": "52:54:00:12:34:56"}], "balloon": true, "qemu_args": [],
    })
}

fn definitions() -> Vec<Seed> {
    let small = json!({ "name": "a", "memory_bytes": 16 << 20, "qemu_args": ["-s"] });
    let toml = |value: &Value| toml::to_string(value).expect("our own values can be written");
    let writers = vec![WriterRegisters { random: 3, writes: 2, seal_sum: u64::MAX, unsound: 0 }];
    let config = SyntheticConfig { blocks: 3, ..SyntheticConfig::default() };
    vec![
        ("definition_json", "full", text(&definition())),
        ("definition_json", "small", text(&small)),
        ("definition_toml", "full", toml(&definition()).into()),
        ("definition_toml", "small", toml(&small).into()),
        (
            "synthetic_registers",
            "blocks",
            text(&Registers { config, writers, in_balloon: PageCount(1) }),
        ),
    ]
}

fn receipt(ending: Ending) -> Receipt {
    let coded = PageCount(3);
    let pages =
        PagesByCoding { raw: PageCount(128), zero: PageCount(9), coded, ..Default::default() };
    let did = CodedPages { pages: coded, bytes: 1234, took: Duration::from_micros(17) };
    let round = |number| Round {
        number,
        started: Duration::from_micros(436_000),
        took: Duration::from_micros(4_400),
        pages,
        bytes: 526_000,
        lacking: PageCount(1),
        dirtied: PageCount(31),
        downtime_limit: Some(Duration::from_millis(300)),
        vcpus: VcpuSpeed::percent(35),
        held_back: Duration::from_micros(650),
    };
    Receipt {
        guest: "web-1".into(),
        attempt: attempt(),
        source: "a".into(),
        destination: "b:7401".into(),
        ending,
        algorithm: AlgorithmName::PreCopy,
        choices: Vec::new(),
        native_mode: None,
        stopped: Some(StopReason::GoalReached),
        limits: Limits { when_stuck: Some(WhenStuck::StopAndCopy), ..Limits::default() },
        streams: 2,
        vcpus: 2,
        ram_bytes: 1 << 30,
        started_unix_ms: 1_763_719_200_000,
        total: Duration::from_millis(5312),
        negotiation: Duration::from_millis(412),
        coders: Coded { lz4: did, ..Coded::default() },
        tracking: Tracking {
            scans: 7,
            took: Duration::from_micros(2_310),
            by: Some(TrackedBy::SoftDirty),
            stopped: Duration::from_micros(1_200),
            longest_stop: Duration::from_micros(700),
        },
        downtime: Some(Downtime {
            total: Duration::from_micros(14_240),
            copy: Duration::from_micros(4_380),
            ready: Duration::from_micros(4_870),
            destination: times(),
            state_bytes: 312_448,
            ..Downtime::default()
        }),
        ballooning: None,
        following: None,
        rounds: vec![round(0), round(1)],
        wire: WireBytes { payload: 1_052_000, sockets: 1_060_000, interface: Some(1_100_000) },
        ram_digest: RamCheck::Equal,
    }
}

fn endings() -> [(&'static str, Ending); 5] {
    [
        ("moved", Ending::Moved),
        ("undone", Ending::Undone { reasons: vec![reason(); 2] }),
        ("guest-gone", Ending::GuestGone { reason: reason() }),
        ("stuck", Ending::Stuck { cause: reason(), reason: reason() }),
        ("lost", Ending::Lost { reason: reason() }),
    ]
}

fn move_request() -> MoveRequest {
    MoveRequest {
        id: Uuid::from_u128(5),
        to: "b:7401".into(),
        algorithm: AlgorithmName::StopAndCopy,
        native_mode: NativeMode::default(),
        limits: Limits::default(),
        hold_back: HoldBack::Aged,
        compress: Compress::Auto,
        balloon: Balloon::Inflate,
        bandwidth_bytes_per_second: Some(1_000_000),
        streams: STREAMS_DEFAULT,
        priority: sterna_api::Priority::default(),
        push: PushOrder::Linear,
        verify: Verify::RamDigest,
    }
}

fn interface() -> Vec<Seed> {
    let id = Uuid::from_u128(7);
    let guest = json!({
        "name": "web-1", "id": id, "state": "paused", "reason": "by an operator", "epoch": 3,
        "pid": 41, "memory_bytes": 1u64 << 30, "current_move": null, "definition": definition(),
    });
    let progress = Progress { stage: "copying".into(), round: 2, ..Progress::default() };
    let moving = json!({
        "id": id, "guest": "web-1", "attempt": attempt(), "direction": "outgoing", "peer": "b",
        "state": "ended", "summary": "moved", "version": "1f", "progress": progress,
        "receipt": receipt(Ending::Moved),
    });
    let finding = json!({ "check": "kvm", "verdict": "limited", "detail": "no", "remedy": "yes" });
    let host = json!({
        "name": "a", "version": "0.1.0", "journal": id.to_string(), "move_port": 7401,
        "guests": 1, "findings": [finding],
    });
    let error = ApiError::new(ErrorCode::Unable, "no").hint("try").reasons(vec![reason()]);
    let mut seeds = vec![
        ("api_request", "start", text(&json!({ "id": id, "definition": definition() }))),
        ("api_request", "move", text(&move_request())),
        ("api_request", "run", text(&json!({ "runs_nowhere_else": true }))),
        ("api_answer", "guest", text(&guest)),
        ("api_answer", "guests", text(&json!([guest]))),
        ("api_answer", "move", text(&moving)),
        ("api_answer", "host", text(&host)),
        ("api_answer", "error", text(&error)),
    ];
    seeds.extend(endings().map(|(name, ending)| ("receipt", name, text(&receipt(ending)))));
    seeds
}

fn records() -> Vec<Seed> {
    let guest = |place: Value| {
        let mut record = json!({
            "id": Uuid::from_u128(7), "definition": definition(), "epoch": 3,
            "process": { "pid": 41, "start_time": 99 },
        });
        let (Value::Object(all), Value::Object(place)) = (&mut record, place) else {
            unreachable!("both are objects")
        };
        all.extend(place);
        record
    };
    let here = guest(json!({ "place": "here" }));
    let arriving = json!({ "place": "arriving", "attempt": attempt(), "before": here });
    let paused = json!({ "place": "paused", "reason": "x", "elsewhere": "may-have-run" });
    let outgoing = json!({
        "attempt": attempt(), "request": move_request(), "offer": offer(),
        "record": { "state": "moving", "journal": Uuid::from_u128(9) },
        "receipt": receipt(Ending::Moved),
    });
    let incoming = json!({
        "id": Uuid::from_u128(5), "attempt": attempt(), "guest": "web-1", "peer": "a",
        "record": "owned",
    });
    vec![
        ("journal_record", "guest-here", text(&here)),
        ("journal_record", "guest-arriving", text(&guest(arriving))),
        ("journal_record", "guest-paused", text(&guest(paused))),
        (
            "journal_record",
            "guest-crashed",
            text(&guest(json!({"place": "crashed", "reason": ""}))),
        ),
        ("journal_record", "guest-moved", text(&guest(json!({"place": "elsewhere", "host": "b"})))),
        ("journal_record", "outgoing", text(&outgoing)),
        ("journal_record", "incoming", text(&incoming)),
    ]
}

fn monitor() -> Vec<Seed> {
    let reply = |value: Value| text(&json!({ "return": value, "id": 3 }));
    let stamp = json!({ "seconds": 1_763_719_200, "microseconds": 5 });
    let event =
        json!({ "event": "MIGRATION", "data": { "status": "completed" }, "timestamp": stamp });
    let failed = json!({ "id": 3, "error": { "class": "GenericError", "desc": "no" } });
    let capability = json!({ "capability": "x-ignore-shared", "state": true });
    let migration =
        json!({ "status": "failed", "error-desc": "no", "blocked-reasons": ["a device"] });
    let property = json!({ "name": "canonical-path", "type": "string" });
    let machine = json!({ "name": "pc-q35-10.0", "alias": "q35", "cpu-max": 288 });
    let version = json!({ "qemu": { "major": 10, "minor": 0, "micro": 2 }, "package": "" });
    vec![
        ("monitor_line", "event", text(&event)),
        ("monitor_line", "refused", text(&failed)),
        ("monitor_line", "status", reply(json!({ "status": "running", "running": true }))),
        ("monitor_line", "migration", reply(migration)),
        ("monitor_line", "capabilities", reply(json!([capability]))),
        ("monitor_line", "memory", reply(json!([{ "id": "ram0", "share": true }]))),
        ("monitor_line", "properties", reply(json!([property]))),
        ("monitor_line", "machines", reply(json!([machine]))),
        ("monitor_line", "version", reply(version)),
    ]
}

fn process() -> Vec<Seed> {
    let maps = "55d0c0a00000-55d0c0a10000 r--p 00000000 08:01 77 /usr/bin/a b\n\
        7f0000000000-7f0040000000 rw-s 00000000 00:01 1234 /memfd:ram0 (deleted)\n\
        7f0040000000-7f0040200000 rw-s 40000000 00:01 1234 /memfd:ram0 (deleted)\n";
    let fields = (3..=52).map(|field| field.to_string()).collect::<Vec<_>>().join(" ");
    let stat = format!("41 (qemu) x) {fields}\n");
    vec![("process_files", "maps", maps.into()), ("process_files", "stat", stat.into())]
}

/// Answers alone lead to a good end; `2` is an event out of the blue, `3` time that passes.
fn scripts() -> Vec<Seed> {
    let script = |head: &[u8], steps: &[u8]| [head, steps].concat();
    let disturbed: Vec<u8> = [[0; 12], [2; 12], [23; 12]].concat();
    vec![
        ("source_machine", "good", script(&[0, 0, 0, 0], &[0; 60])),
        ("source_machine", "verified", script(&[1, 1, 0, 0], &[0; 60])),
        ("source_machine", "recovered", script(&[0, 0, 4, 0], &[0; 20])),
        ("source_machine", "undone", script(&[0, 0, 0, 63], &[disturbed, vec![0; 40]].concat())),
        ("destination_machine", "good", script(&[0, 0, 0], &[0; 60])),
        ("destination_machine", "verified", script(&[1, 0, 0], &[0; 60])),
        ("destination_machine", "recovered", script(&[0, 2, 4], &[0; 20])),
    ]
}
