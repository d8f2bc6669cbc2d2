//! The component in a simulated system: a console that types, a root with one guest and some files, the
//! real store, and a guest that obeys or does not.

use std::sync::{Arc, Mutex};

use idl::Piece;
use idl::console::{ClientKind, Console, ConsoleError, ConsoleServer};
use idl::operator::{
    DefineError, Definition, FileInfo, FilePiece, GuestInfo, GuestOrder, GuestState, MachineInfo,
    Operator, OperatorServer, OrderError, Path,
};
use idl::ring::RingPage;
use idl::store::{Answer, Badge, PIECE, Rings, Session, StoreError, StoreServer};
use idl::{Name, name};
use microvisor_testkit::{Component, Plan, Restart, System};
use sdk::prelude::*;
use sdk::store::Store;
use xenstore::Service;
use xenstore::journal::Area;
use xenstore::toolstack::Facts;

use crate::terminal::CONSOLE;

/// The console: gives out one page.
#[derive(Clone, Default)]
struct Screen(Arc<Mutex<Option<&'static RingPage>>>);

struct Keys {
    screen: Screen,
    frame: Cap<cap::Frame>,
    own: Cap<cap::Notification>,
}

impl ConsoleServer for Keys {
    fn attach(
        &mut self,
        _: u64,
        _: Name,
        kind: ClientKind,
        wake: Cap<cap::Notification>,
    ) -> Result<(Cap<cap::Frame>, Cap<cap::Notification>), ConsoleError> {
        let _ = wake.delete();
        match kind {
            ClientKind::Operator => Ok((self.frame, self.own)),
            _ => Err(ConsoleError::Full(0)),
        }
    }
}

impl Notified for Keys {
    fn notified(&mut self, _: u64) {}
}

impl Screen {
    fn serve(&self, env: &Env) {
        let frame = Cap::new(env.ring_pages.slot);
        let page = sdk::memory::map_shared(frame).unwrap();
        *self.0.lock().unwrap() = Some(page);
        let mut keys = Keys {
            screen: self.clone(),
            frame,
            own: env.notification(),
        };
        let _ = &keys.screen;
        let mut receiver = Receiver::new(env.endpoint("console"), REPLY, 1).unwrap();
        let _ = serve::<Console, _>(&mut receiver, &mut keys);
    }

    fn page(&self) -> &'static RingPage {
        self.0.lock().unwrap().unwrap()
    }

    /// Types lines; what was answered.
    fn types(&self, system: &System, text: &str) -> String {
        self.page().input.writer().write(text.as_bytes());
        system.signal("toolstack", CONSOLE);
        self.read(system)
    }

    fn read(&self, system: &System) -> String {
        let mut said = Vec::new();
        let mut bytes = [0; 512];
        while let Ok(count @ 1..) = self.page().output.reader().read(&mut bytes) {
            said.extend_from_slice(&bytes[..count]);
            system.signal("toolstack", CONSOLE);
        }
        String::from_utf8(said).unwrap()
    }
}

/// What root would do.
#[derive(Clone)]
struct Root(Arc<Mutex<State>>);

struct State {
    guest: GuestState,
    files: Vec<(&'static str, String)>,
    defined: Vec<Definition>,
}

impl OperatorServer for Root {
    fn guest(&mut self, _: u64, index: u32) -> Option<GuestInfo> {
        let state = self.0.lock().unwrap().guest;
        (index == 0).then(|| GuestInfo {
            name: name("linux"),
            state,
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
            uptime_ms: 1500,
            memory_kib: 100,
            guests_kib: 30,
            free_kib: 50,
            free_slots: 9,
        }
    }
    fn order(&mut self, _: u64, _: Name, order: GuestOrder) -> Result<GuestState, OrderError> {
        let mut state = self.0.lock().unwrap();
        match (state.guest, order) {
            (GuestState::Running, GuestOrder::Pause) => state.guest = GuestState::Paused,
            (now, _) => return Err(OrderError::State(now)),
        }
        Ok(state.guest)
    }
    fn define(&mut self, _: u64, definition: Definition) -> Result<u16, DefineError> {
        let mut state = self.0.lock().unwrap();
        if definition.name == "linux" {
            return Err(DefineError::Taken);
        }
        state.defined.push(definition);
        Ok(7)
    }
    fn file(&mut self, _: u64, path: Path, offset: u64) -> Option<FilePiece> {
        let state = self.0.lock().unwrap();
        let (_, text) = state
            .files
            .iter()
            .find(|(name, _)| *name == path.as_str())?;
        Some(FilePiece {
            length: text.len() as u64,
            piece: Piece::of(text.as_bytes().get(offset as usize..).unwrap_or(&[])),
        })
    }
    fn listed(&mut self, _: u64, index: u32) -> Option<FileInfo> {
        let state = self.0.lock().unwrap();
        let (name, text) = state.files.get(index as usize)?;
        Some(FileInfo {
            path: Path::try_from(*name).unwrap(),
            bytes: text.len() as u64,
        })
    }
}

impl Notified for Root {
    fn notified(&mut self, _: u64) {}
}

struct Words(Vec<u64>);

impl Area for Words {
    fn words(&self) -> u64 {
        self.0.len() as u64
    }
    fn read(&self, word: u64) -> u64 {
        self.0[word as usize]
    }
    fn write(&mut self, word: u64, value: u64) {
        self.0[word as usize] = value;
    }
}

/// The store's endpoint, as its component has it.
struct Stored {
    service: Service<Words>,
    wakes: Vec<(u32, Cap<cap::Notification>)>,
}

impl Stored {
    fn tell(&mut self) {
        for client in self.service.woken() {
            for (other, wake) in &self.wakes {
                if *other == client {
                    wake.signal(1).unwrap();
                }
            }
        }
    }
}

impl StoreServer for Stored {
    fn attach(
        &mut self,
        client: u64,
        session: Session,
        wake: Cap<cap::Notification>,
    ) -> Result<(), StoreError> {
        let badge = Badge::of(client).unwrap();
        let (client, domain) = (badge.component, badge.domain.unwrap());
        if let Session::New(Some(rings)) = session {
            self.service.introduce(&Facts {
                domain,
                starts: 1,
                name: "linux".into(),
                vcpus: 2,
                memory_kib: 1,
                rings,
                disks: Vec::new(),
                serves: Vec::new(),
            })?;
        }
        self.wakes.push((client, wake));
        self.service.open_session(client, domain)?;
        self.tell();
        Ok(())
    }
    fn send(
        &mut self,
        client: u64,
        number: u32,
        length: u32,
        offset: u32,
        piece: Piece<PIECE>,
    ) -> Result<Option<Answer>, StoreError> {
        let client = Badge::of(client).unwrap().component;
        let answer = self.service.send(client, number, length, offset, &piece);
        self.tell();
        answer
    }
    fn rest(&mut self, client: u64, number: u32, offset: u32) -> Result<Piece<PIECE>, StoreError> {
        self.service
            .rest(Badge::of(client).unwrap().component, number, offset)
    }
    fn events(&mut self, client: u64) -> Result<(Piece<PIECE>, bool), StoreError> {
        self.service.events(Badge::of(client).unwrap().component)
    }
}

impl Notified for Stored {
    fn notified(&mut self, _: u64) {}
}

const FILE: &str = "name='new'; type='pvh'; kernel='k'; memory=64; vnc=1";

fn start() -> (System, Screen, Root) {
    let root = Root(Arc::new(Mutex::new(State {
        guest: GuestState::Running,
        files: vec![
            ("new.cfg", FILE.into()),
            ("taken.cfg", FILE.replace("new", "linux")),
            ("wrong.cfg", format!("{}\nmemory", "# ".repeat(2000))),
            ("large.cfg", " ".repeat(70_000)),
        ],
        defined: Vec::new(),
    })));
    let screen = Screen::default();
    let (keys, desk) = (screen.clone(), root.clone());
    let console = Component::new("keyboard", move |env: Env| keys.serve(&env));
    let operator = Component::new("root-part", move |env: Env| {
        let mut receiver = Receiver::new(env.endpoint("operator"), REPLY, 0).unwrap();
        let _ = serve::<Operator, _>(&mut receiver, &mut desk.clone());
    });
    let store = Component::new("xenstore", |env: Env| {
        let (service, _) = Service::open(Words(vec![0; 8192]));
        let wakes = Vec::new();
        let mut receiver = Receiver::new(env.endpoint("store"), REPLY, 1).unwrap();
        let _ = serve::<idl::store::Store, _>(&mut receiver, &mut Stored { service, wakes });
    });
    let system = System::start(
        Plan::new(),
        vec![
            console.serves("console").ring_pages(),
            operator.serves("operator"),
            store.serves("store"),
            Component::new("toolstack", crate::server::main)
                .needs("console")
                .needs("operator")
                .needs("store")
                .restart(Restart::Always),
            Component::driven("vmm").needs("store").guest("linux"),
        ],
    );
    system.run();
    (system, screen, root)
}

#[test]
fn a_line_is_answered_and_ended() {
    let (system, screen, _) = start();
    let list = screen.types(&system, "list --json\n");
    assert!(
        list.starts_with("[\n{\"name\":\"linux\",\"domain\":1,"),
        "{list}"
    );
    assert!(list.ends_with("}\n]\n\x04\n"), "{list}");
    let both = screen.types(&system, "pause linux\npause 1\n");
    assert_eq!(
        both,
        "guest linux: paused\n\x04\nguest linux is paused: refused\n\x04\n"
    );
    for (line, says) in [
        ("info", "100 in all, 30 guests', 20 components', 50 free\n"),
        ("frob", "frob: no such command; try help\n\x04\n"),
        ("pause nobody", "there is no guest nobody; try list\n\x04\n"),
        ("files", "52  new.cfg\n"),
        ("", "\x04\n"),
    ] {
        let said = screen.types(&system, &format!("{line}\n"));
        assert!(said.contains(says), "{line}: {said:?}");
    }
    // More than the ring holds at a time.
    let help = screen.types(&system, "help\nhelp\nhelp\n");
    assert_eq!(
        help.matches("destroy [").count() + help.matches("destroy  NAME").count(),
        3
    );
    assert_eq!(help.matches("\x04\n").count(), 3);
    assert_eq!(system.deaths("toolstack"), []);
}

#[test]
fn a_guest_is_created_of_a_file() {
    let (system, screen, root) = start();
    assert_eq!(
        screen.types(&system, "create -c new.cfg\n"),
        "new.cfg: line 1, column 48: vnc is not supported and ignored\n\
         guest new: building, domain 7\n\x04new\n"
    );
    {
        let state = root.0.lock().unwrap();
        assert_eq!(state.defined.len(), 1);
        assert_eq!(state.defined[0].vcpus.as_slice(), [0]);
    }
    for (line, says) in [
        (
            "create taken.cfg",
            "guest linux: there is a guest of this name",
        ),
        (
            "create wrong.cfg",
            "wrong.cfg: line 2, column 7: the end of the file",
        ),
        ("create large.cfg", "70000 bytes are too many"),
        ("create none.cfg", "there is no guest none.cfg, and no file"),
        ("create -n new.cfg", "guest new could be created"),
        ("create linux", "guest linux is running: refused"),
    ] {
        let said = screen.types(&system, &format!("{line}\n"));
        assert!(said.contains(says), "{line}: {said:?}");
    }
    assert_eq!(root.0.lock().unwrap().defined.len(), 1);
}

const NODE: &str = "/local/domain/1/control/shutdown";
const RINGS: Rings = Rings {
    console_frame: 1,
    console_port: 2,
    store_frame: 3,
    store_port: 4,
};

/// The guest's VMM as a client of the store.
fn guest(system: &System) -> Store {
    system.drive("vmm", |env| {
        let wake = env.notification().mint(Rights::SIGNAL, 1).unwrap();
        let mut store = Store::attach(env.transport("store"), Some(RINGS), wake).unwrap();
        store
            .write("/local/domain/1/control/feature-poweroff", b"1")
            .unwrap();
        store
    })
}

#[test]
fn a_guest_that_takes_the_word_is_waited_for() {
    let (system, screen, root) = start();
    let mut store = guest(&system);
    assert_eq!(screen.types(&system, "shutdown -w linux\n"), "");
    system.drive("vmm", |_| {
        assert_eq!(store.read(NODE).unwrap(), b"poweroff");
        store.write(NODE, b"").unwrap();
    });
    system.run();
    assert_eq!(screen.read(&system), "guest linux: asked for poweroff\n");
    root.0.lock().unwrap().guest = GuestState::Off;
    // Whatever the store says then has it look.
    system.drive("vmm", |_| store.write(NODE, b"").unwrap());
    system.run();
    assert_eq!(
        screen.read(&system),
        "guest linux: poweroff is done\n\x04\n"
    );
    assert_eq!(
        screen.types(&system, "shutdown linux\n"),
        "guest linux is off: refused\n\x04\n"
    );
}

#[test]
fn a_guest_that_does_not_take_the_word_is_told_after_a_while() {
    let (system, screen, _) = start();
    let _store = guest(&system);
    let said = screen.types(&system, "reboot linux\n");
    assert!(said.contains("does not say that it obeys reboot"), "{said}");
    system.advance(sdk::time::microseconds(20_000_000));
    let said = screen.read(&system);
    assert!(said.contains("did not take reboot within 15 s"), "{said}");
    assert!(said.ends_with("\x04\n"), "{said}");
}
