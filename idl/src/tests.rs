//! Every interface: random bytes never panic a dispatcher, requests and answers survive the wire.
use super::*;
use crate::admin::{Admin, AdminClient, AdminError, AdminServer, Inventory};
use crate::bench::{Bench, BenchClient, BenchServer};
use crate::block::{Attached, Block, BlockError, BlockServer, Discard, Geometry};
use crate::builder::{BuildError, Builder, BuilderClient, BuilderServer, Built, Compression};
use crate::console::{ClientKind, Console, ConsoleClient, ConsoleError, ConsoleServer};
use crate::hardware::{Assignment, Facts, Hardware, HardwareError, HardwareServer, Iommu, Lines};
use crate::local::Local;
use crate::operator::{
    DefineError, Definition, Ends, FileInfo, FilePiece, GuestInfo, GuestOrder, GuestState,
    MachineInfo, Operator, OperatorClient, OperatorServer, OrderError, Path,
};
use crate::pci::{Bar, Function, Pci, PciClient, PciError, PciServer};
use crate::supervisor::{Detail, StopReason, Supervisor, SupervisorClient, SupervisorServer};
use proptest::prelude::*;

/// Implements every interface and remembers what it was told.
#[derive(Default)]
struct Everything {
    clients: std::vec::Vec<(u64, Name)>,
    built: Option<Result<Built, BuildError>>,
    stopped: Option<(StopReason, Detail)>,
}

impl ConsoleServer for Everything {
    fn attach(
        &mut self,
        client: u64,
        name: Name,
        kind: ClientKind,
        wake: Cap<cap::Notification>,
    ) -> Result<(Cap<cap::Frame>, Cap<cap::Notification>), ConsoleError> {
        if kind == ClientKind::Log {
            return Err(ConsoleError::Full(wake.slot()));
        }
        self.clients.push((client, name));
        Ok((Cap::new(10), wake))
    }
}

impl BenchServer for Everything {
    fn echo(&mut self, _: u64, bytes: Bytes<31>) -> Bytes<31> {
        bytes
    }
}

impl BlockServer for Everything {
    fn attach(
        &mut self,
        _: u64,
        wake: Cap<cap::Notification>,
    ) -> Result<(Attached, Cap<cap::Frame>, Cap<cap::Notification>), BlockError> {
        let geometry = Geometry {
            block_bytes: 512,
            blocks: u64::MAX,
            request_bytes: 1 << 20,
            read_only: false,
            write_cache: true,
            queues: 4,
            discard: Some(Discard {
                bytes: 1 << 20,
                granularity: 4096,
            }),
        };
        let shared_bytes = 2 << 20;
        Ok((
            Attached {
                geometry,
                shared_bytes,
            },
            Cap::new(10),
            wake,
        ))
    }
}

impl HardwareServer for Everything {
    fn facts(&mut self, _: u64) -> Facts {
        Facts {
            rsdp: u64::MAX,
            iommu: Iommu::AmdVi,
            remapping: true,
        }
    }
    fn assignment(&mut self, badge: u64, index: u32) -> Option<Assignment> {
        let selector = crate::manifest::Selector::Class { code: index };
        let name = name("driver");
        Some(Assignment {
            badge,
            name,
            selector,
        })
    }
    fn frame(&mut self, _: u64, _: u64, _: u8) -> Result<Cap<cap::Frame>, HardwareError> {
        Ok(Cap::new(11))
    }
    fn devices(&mut self, _: u64) -> Result<Cap<cap::Device>, HardwareError> {
        Err(HardwareError::Core(5))
    }
    fn interrupts(&mut self, _: u64) -> Result<(Lines, Cap<cap::Interrupt>), HardwareError> {
        let (first, count) = (16, 112);
        Ok((Lines { first, count }, Cap::new(12)))
    }
}

impl PciServer for Everything {
    fn open(&mut self, _: u64) -> Result<(Function, Cap<cap::Device>), PciError> {
        let function = Function {
            id: u16::MAX,
            vendor: u16::MAX,
            device: u16::MAX,
            subsystem_vendor: u16::MAX,
            subsystem: u16::MAX,
            class: u32::MAX,
            revision: u8::MAX,
            bars: [Bar::Memory { bytes: u64::MAX }; crate::pci::BARS],
            vectors: u16::MAX,
            vendor_capabilities: u8::MAX,
            protected: true,
        };
        Ok((function, Cap::new(13)))
    }
    fn page(&mut self, _: u64, bar: u8, page: u32) -> Result<Cap<cap::Frame>, PciError> {
        Ok(Cap::new(u32::from(bar) + page % 16))
    }
    fn vendor_capability(&mut self, _: u64, index: u8) -> Result<Bytes<64>, PciError> {
        Ok(Bytes([index; 64]))
    }
    fn interrupt(&mut self, _: u64, _: u16) -> Result<Cap<cap::Interrupt>, PciError> {
        Err(PciError::NoInterrupts)
    }
    fn enable(&mut self, _: u64) -> Result<(), PciError> {
        Err(PciError::NotAttached)
    }
    fn disable(&mut self, _: u64) -> Result<(), PciError> {
        Ok(())
    }
}

impl BuilderServer for Everything {
    fn built(&mut self, _: u64, result: Built) {
        self.built = Some(Ok(result));
    }
    fn failed(&mut self, _: u64, error: BuildError) {
        self.built = Some(Err(error));
    }
}

impl SupervisorServer for Everything {
    fn ready(&mut self, _: u64) {}
    fn guest_stopped(&mut self, _: u64, reason: StopReason, detail: Detail) {
        self.stopped = Some((reason, detail));
    }
    fn failed(&mut self, _: u64, _: Detail) {}
    fn exit(&mut self, _: u64) {}
}

impl AdminServer for Everything {
    fn inventory(&mut self, _: u64) -> Inventory {
        Inventory {
            used_frames: 1,
            free_kib: 2,
            free_slots: 3,
            held_slots: 4,
            heap_bytes: 5,
            running: 6,
        }
    }
    fn kill(&mut self, _: u64, component: Name) -> Result<(), AdminError> {
        match component.as_str() {
            "console" => Ok(()),
            _ => Err(AdminError::NoComponent),
        }
    }
}

impl OperatorServer for Everything {
    fn guest(&mut self, _: u64, index: u32) -> Option<GuestInfo> {
        (index == 0).then(|| GuestInfo {
            name: name("linux"),
            state: GuestState::Paused,
            vcpus: 2,
            memory_mib: 512,
            starts: 1,
            domain: 1,
            described: true,
        })
    }
    fn machine(&mut self, _: u64) -> MachineInfo {
        MachineInfo {
            cpus: 2,
            uptime_ms: 1,
            memory_kib: 1 << 20,
            guests_kib: 1 << 19,
            free_kib: 1 << 18,
            free_slots: 9,
        }
    }
    fn order(&mut self, _: u64, _: Name, order: GuestOrder) -> Result<GuestState, OrderError> {
        match order {
            GuestOrder::Pause => Ok(GuestState::Paused),
            _ => Err(OrderError::State(GuestState::Paused)),
        }
    }
    fn define(&mut self, _: u64, definition: Definition) -> Result<u16, DefineError> {
        match definition.cmdline.len() + definition.vcpus.len() + definition.disks.len() {
            0 => Err(DefineError::Size),
            sum => Ok(sum as u16),
        }
    }
    fn file(&mut self, _: u64, path: Path, offset: u64) -> Option<FilePiece> {
        (path == "a").then(|| FilePiece {
            length: offset,
            piece: Piece::of(&[7; 2048]),
        })
    }
    fn listed(&mut self, _: u64, _: u32) -> Option<FileInfo> {
        None
    }
}

#[test]
fn a_capability_and_a_badge_arrive_where_they_belong() {
    let local = Local::<Console, _>::with_badge(Everything::default(), 7);
    let console = ConsoleClient::connect(local).unwrap();
    let wake = Cap::new(11);
    let attach = |kind| console.attach(name("linux"), kind, wake);
    assert_eq!(attach(ClientKind::Guest), Ok((Cap::new(10), wake)));
    assert_eq!(
        attach(ClientKind::Log),
        Err(CallError::Answer(ConsoleError::Full(11)))
    );
}

#[test]
fn answers_reach_the_caller() {
    let local = Local::<Builder, _>::new(Everything::default());
    let builder = BuilderClient::connect(local).unwrap();
    builder
        .failed(BuildError::Payload(Compression::Unknown(7)))
        .unwrap();
    let local = Local::<Supervisor, _>::new(Everything::default());
    let supervisor = SupervisorClient::connect(local).unwrap();
    let detail = Detail::try_from("off").unwrap();
    supervisor
        .guest_stopped(StopReason::Poweroff, detail)
        .unwrap();
    supervisor.ready().unwrap();
}

#[test]
fn a_component_is_killed_by_name() {
    let local = Local::<Admin, _>::new(Everything::default());
    let admin = AdminClient::connect(local).unwrap();
    assert_eq!(admin.kill(name("console")), Ok(()));
    assert_eq!(
        admin.kill(name("nobody")),
        Err(CallError::Answer(AdminError::NoComponent))
    );
    assert_eq!(admin.inventory().unwrap().running, 6);
}

#[test]
fn orders_are_allowed_or_refused_with_the_state() {
    let local = Local::<Operator, _>::new(Everything::default());
    let operator = OperatorClient::connect(local).unwrap();
    let order = |order| operator.order(name("linux"), order);
    assert_eq!(order(GuestOrder::Pause), Ok(GuestState::Paused));
    assert_eq!(
        order(GuestOrder::Create),
        Err(CallError::Answer(OrderError::State(GuestState::Paused)))
    );
    assert_eq!(operator.guest(0).unwrap().unwrap().vcpus, 2);
    assert_eq!(operator.guest(1), Ok(None));
}

#[test]
fn the_largest_definition_fits_a_message() {
    let local = Local::<Operator, _>::new(Everything::default());
    let operator = OperatorClient::connect(local).unwrap();
    let long = || Name::try_from("x".repeat(32).as_str()).unwrap();
    let path = || Path::try_from("x".repeat(112).as_str()).unwrap();
    let disk = crate::operator::Disk {
        volume: long(),
        device: long(),
        read_only: true,
        discard: true,
        driver: Some(long()),
    };
    let definition = Definition {
        name: long(),
        memory_mib: u64::MAX,
        vcpus: [u32::MAX; 32].into_iter().collect(),
        kernel: path(),
        initrd: Some(path()),
        cmdline: "x".repeat(2048).as_str().try_into().unwrap(),
        disks: core::iter::repeat_n(disk, 8).collect(),
        ends: Ends {
            poweroff: true,
            reboot: true,
            crash: true,
        },
        max_grant_version: u32::MAX,
    };
    assert_eq!(operator.define(definition), Ok(2048 + 32 + 8));
    assert_eq!(operator.file(path(), 0), Ok(None));
    let read = operator.file("a".try_into().unwrap(), 9).unwrap().unwrap();
    assert_eq!((read.length, read.piece.len()), (9, 2048));
}

#[test]
fn a_function_reaches_its_driver_with_its_right() {
    let bus = PciClient::connect(Local::<Pci, _>::new(Everything::default())).unwrap();
    let (function, right) = bus.open().unwrap();
    assert_eq!(
        (function.id, function.protected, right.slot()),
        (u16::MAX, true, 13)
    );
    assert_eq!(bus.vendor_capability(7), Ok(Bytes([7; 64])));
    assert_eq!(bus.enable(), Err(CallError::Answer(PciError::NotAttached)));
}

#[test]
fn the_benchmarks_message_is_32_bytes() {
    let mut bytes = [0; 64];
    let mut out = wire::Writer::new(&mut bytes);
    out.put(&Bytes([7; 31])).unwrap();
    assert_eq!(out.len(), 32);
}

#[test]
fn another_version_is_refused_when_connecting() {
    struct Other;
    impl Transport for Other {
        type Error = ();
        fn call<R>(
            &self,
            _: u32,
            _: usize,
            _: impl FnOnce(&mut wire::Writer<'_>) -> Result<(), wire::Error>,
            decode: impl FnOnce(wire::Reader<'_>) -> Result<R, Refusal>,
        ) -> Result<R, Failure<()>> {
            decode(wire::Reader::new(&[5], &[])).map_err(|_| Failure::Malformed)
        }
    }
    let ours = Bench::HASH;
    assert_eq!(
        BenchClient::connect(Other).err(),
        Some(ConnectError::Schema { ours, theirs: 5 })
    );
}

#[test]
fn hashes_tell_interfaces_apart() {
    let hashes = [
        Admin::HASH,
        Bench::HASH,
        Block::HASH,
        Builder::HASH,
        Console::HASH,
        Hardware::HASH,
        Operator::HASH,
        Pci::HASH,
        Supervisor::HASH,
    ];
    for (index, hash) in hashes.iter().enumerate() {
        assert!(!hashes[index + 1..].contains(hash));
    }
}

#[test]
fn long_names_are_cut_at_a_characters_border() {
    assert_eq!(name(&"ä".repeat(40)).as_str(), "ä".repeat(16));
}

fn fuzz<I: Dispatch<Everything>>(method: u32, bytes: &[u8], caps: &[u32]) {
    for length in [PAYLOAD_MAX, 3] {
        let mut out = [0; PAYLOAD_MAX];
        let into = local::Into(&mut out[..length]);
        let sent = I::dispatch(&mut Everything::default(), 1, method, bytes, caps, into);
        assert!(length == 3 || !matches!(sent, Ok(Err(_))));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    #[test]
    fn random_messages_never_panic(
        method in 0u32..6,
        bytes in proptest::collection::vec(any::<u8>(), 0..400),
        small in proptest::collection::vec(0u8..9, 0..40),
        caps in proptest::collection::vec(any::<u32>(), 0..5),
    ) {
        for bytes in [&bytes, &small] {
            fuzz::<Admin>(method, bytes, &caps);
            fuzz::<Bench>(method, bytes, &caps);
            fuzz::<Block>(method, bytes, &caps);
            fuzz::<Builder>(method, bytes, &caps);
            fuzz::<Console>(method, bytes, &caps);
            fuzz::<Hardware>(method, bytes, &caps);
            fuzz::<Operator>(method, bytes, &caps);
            fuzz::<Pci>(method, bytes, &caps);
            fuzz::<Supervisor>(method, bytes, &caps);
        }
    }

    #[test]
    fn requests_survive_the_wire(text in "[a-z]{0,32}", vcpu: u32, rip: u64) {
        let requests = [
            supervisor::SupervisorRequest::GuestStopped {
                reason: StopReason::TripleFault { vcpu, rip },
                detail: Detail::try_from(text.as_str()).unwrap(),
            },
            supervisor::SupervisorRequest::Ready {},
        ];
        for request in requests {
            let mut bytes = [0; 512];
            let mut out = wire::Writer::new(&mut bytes);
            request.encode(&mut out).unwrap();
            let length = out.len();
            let back = supervisor::SupervisorRequest::decode(
                request.method(), &bytes[..length], &[]);
            prop_assert_eq!(back, Ok(request));
        }
    }

    #[test]
    fn echo_answers_what_it_was_asked(bytes: [u8; 31]) {
        let bench = BenchClient::connect(Local::<Bench, _>::new(Everything::default())).unwrap();
        prop_assert_eq!(bench.echo(Bytes(bytes)), Ok(Bytes(bytes)));
    }
}
