//! The component's own server in a simulated system: VMMs that introduce their guests, a component
//! that watches, and a store that dies at every call.

use std::sync::{Arc, Mutex};

use idl::domains::{DomainInfo, Domains, DomainsServer};
use idl::store::{Rings, StoreError};
use idl::xs_wire::kind;
use microvisor_testkit::{Component, Fault, Plan, Restart, Site, System};
use sdk::keep::Area;
use sdk::prelude::*;
use sdk::startup::{DOMAINS, PEERS};
use sdk::store::{Error, Store};

/// Kept memory: the next instance gets it again.
#[derive(Clone)]
struct Kept(Arc<Mutex<Vec<u64>>>);

impl Area for Kept {
    fn words(&self) -> u64 {
        self.0.lock().unwrap().len() as u64
    }
    fn read(&self, word: u64) -> u64 {
        self.0.lock().unwrap()[word as usize]
    }
    fn write(&mut self, word: u64, value: u64) {
        self.0.lock().unwrap()[word as usize] = value;
    }
}

/// What root would say: how often each guest was built; 0 for one that is not there.
type Guests = Arc<Mutex<[u32; 2]>>;

struct Root(Guests);

impl DomainsServer for Root {
    fn domain(&mut self, _: u64, index: u32) -> Option<DomainInfo> {
        let starts = *self.0.lock().unwrap().get(index as usize)?;
        Some(DomainInfo {
            domain: index as u16 + 1,
            name: idl::name("guest"),
            starts: starts.max(1),
            present: starts != 0,
            vcpus: 1,
            memory_kib: 65_536,
            disks: Default::default(),
        })
    }
}

impl Notified for Root {
    fn notified(&mut self, _: u64) {}
}

fn system(plan: Plan, guests: &Guests) -> System {
    let root = Guests::clone(guests);
    let domains = Component::new("root-part", move |env: Env| {
        let mut receiver = Receiver::new(env.endpoint("domains"), REPLY, 0).unwrap();
        let _ = serve::<Domains, _>(&mut receiver, &mut Root(Guests::clone(&root)));
    });
    let kept = Kept(Arc::new(Mutex::new(vec![0; 8192])));
    let store = Component::new("xenstore", move |env: Env| {
        crate::server::run(&env, kept.clone());
    });
    let store = store.serves("store").needs("domains").needs("supervisor");
    let client = |name| Component::driven(name).needs("store").needs("supervisor");
    System::start(
        plan,
        vec![
            domains.serves("domains"),
            store.restart(Restart::Always),
            client("one").guest("one"),
            client("two").guest("two"),
            client("backend"),
        ],
    )
}

fn both() -> Guests {
    Arc::new(Mutex::new([1, 1]))
}

fn attach(env: &Env, guest: bool) -> Result<Store, Error> {
    let rings = Rings {
        console_frame: 1,
        console_port: 1,
        store_frame: 2,
        store_port: 2,
    };
    let wake = env.notification().mint(Rights::SIGNAL, 2).unwrap();
    let outcome = Store::attach(env.transport("store"), guest.then_some(rings), wake);
    if outcome.is_err() {
        wake.delete().unwrap();
    }
    outcome
}

fn refused<T>(outcome: Result<T, Error>) -> String {
    match outcome {
        Err(Error::Refused(name)) => name,
        Err(other) => format!("{other:?}"),
        Ok(_) => "nothing".into(),
    }
}

fn paths(store: &mut Store) -> Vec<String> {
    let fired = store.fired().unwrap().into_iter();
    fired.map(|event| event.path).collect()
}

#[test]
fn a_guest_and_a_backend_meet_in_the_store() {
    let system = system(Plan::new(), &both());
    let mut one = system.drive("one", |env| attach(env, true)).unwrap();
    let mut backend = system.drive("backend", |env| attach(env, false)).unwrap();
    system.drive("backend", |_| {
        assert_eq!(backend.read("/local/domain/1/name").unwrap(), b"guest");
        backend.watch("/local/domain/1/data", "t").unwrap();
        assert_eq!(paths(&mut backend), ["/local/domain/1/data"]);
    });
    let long = vec![b'x'; 1900];
    system.drive("one", |_| {
        one.write("data/long", &long).unwrap();
        assert_eq!(refused(one.write("name", b"evil")), "EACCES");
        assert_eq!(refused(one.ask(kind::RELEASE, 0, b"2\0")), "EACCES");
    });
    system.drive("backend", |env| {
        assert_eq!(env.notification().wait(NOW), Ok(2));
        backend.woken();
        assert_eq!(paths(&mut backend), ["/local/domain/1/data/long"]);
        let path = "/local/domain/1/data/long";
        assert_eq!(backend.read(path).unwrap(), long);
        let all = vec![b'y'; 4000];
        backend.write("/tool/all", &all).unwrap();
        assert_eq!(backend.read("/tool/all").unwrap(), all, "in pieces");
        assert_eq!(backend.directory("/local/domain").unwrap(), ["0", "1"]);
    });
    assert_eq!(system.faults(), [""; 0]);
}

#[test]
fn a_store_that_was_killed_goes_on_and_wakes_its_clients() {
    let system = system(Plan::new(), &both());
    let mut one = system.drive("one", |env| attach(env, true)).unwrap();
    let mut two = system.drive("two", |env| attach(env, true)).unwrap();
    system.drive("one", |_| {
        one.write("data/x", b"1").unwrap();
        one.ask(kind::SET_PERMS, 0, b"data/x\0n1\0r2\0").unwrap();
    });
    let path = "/local/domain/1/data/x";
    system.drive("two", |env| {
        two.watch(path, "t").unwrap();
        assert_eq!(paths(&mut two), [path]);
        let _ = env.notification().wait(NOW);
    });
    system.kill("xenstore");
    system.drive("two", |env| {
        assert_eq!(env.notification().wait(NOW), Ok(PEERS));
        two.woken();
        assert_eq!(paths(&mut two), [path], "it may have missed something");
        assert_eq!(two.read(path).unwrap(), b"1");
    });
    system.drive("one", |_| one.write("data/x", b"2").unwrap());
    system.drive("two", |env| {
        assert_eq!(
            env.notification().wait(NOW),
            Ok(2),
            "the new one knows whom"
        );
        two.woken();
        assert_eq!(paths(&mut two), [path]);
        assert_eq!(two.read(path).unwrap(), b"2");
    });
    assert_eq!(system.restarts("xenstore"), 1);
    assert_eq!(system.faults(), [""; 0]);
}

#[test]
fn a_guest_that_is_gone_is_released_and_the_next_one_begins_anew() {
    let guests = both();
    let system = system(Plan::new(), &guests);
    let mut one = system.drive("one", |env| attach(env, true)).unwrap();
    let mut backend = system.drive("backend", |env| attach(env, false)).unwrap();
    system.drive("one", |_| one.write("data/x", b"1").unwrap());
    system.drive("backend", |_| {
        backend.watch("@releaseDomain", "t").unwrap();
        paths(&mut backend);
    });
    guests.lock().unwrap()[0] = 0;
    system.signal("xenstore", DOMAINS);
    system.run();
    system.drive("backend", |_| {
        backend.woken();
        assert_eq!(paths(&mut backend), ["@releaseDomain"]);
        assert_eq!(refused(backend.read("/local/domain/1/name")), "ENOENT");
    });
    let lost = Error::Store(StoreError::NoSession);
    assert_eq!(system.drive("one", |_| one.read("name")), Err(lost));
    let none = system.drive("one", |env| attach(env, true).err());
    assert_eq!(none, Some(Error::Store(StoreError::NoDomain)));
    guests.lock().unwrap()[0] = 2;
    let mut one = system.drive("one", |env| attach(env, true)).unwrap();
    system.drive("one", |_| {
        assert_eq!(one.read("name").unwrap(), b"guest");
        assert_eq!(refused(one.read("data/x")), "ENOENT");
    });
}

/// A guest that begins a transaction, makes a node and watches it, under a plan.
fn story(plan: Plan) -> System {
    let system = system(plan, &both());
    system.drive("one", |env| {
        let Ok(mut one) = attach(env, true) else {
            return;
        };
        // A fault that damages a message is told to the caller; a death is not.
        let Ok(id) = one.ask(kind::TRANSACTION_START, 0, b"\0") else {
            return;
        };
        assert_eq!(id, b"1\0", "begun once");
        let made = one.ask(kind::MKDIR, 0, b"data/x\0");
        let watched = one.watch("data/x", "t");
        if made.is_ok() && watched.is_ok() {
            assert_ne!(refused(one.read("data/x")), "ENOENT");
            assert_ne!(refused(one.watch("data/x", "t")), "nothing", "it watches");
        }
        assert_ne!(refused(watched), "EEXIST", "not carried out twice");
    });
    system
}

#[test]
fn every_request_happens_once_wherever_the_store_dies() {
    let sites = story(Plan::new()).sites();
    let mut happened = 0;
    for site in sites {
        let faults = match &site {
            Site::Call { client, .. } if client == "one" => Fault::of_calls(),
            Site::SystemCall { component, .. } if component == "xenstore" => vec![Fault::Die],
            // Root does not die.
            _ => continue,
        };
        for fault in faults {
            let system = story(Plan::new().with(site.clone(), fault));
            assert_eq!(system.faults(), [""; 0], "{site:?} {fault:?}");
            happened += usize::from(system.pending().is_empty());
        }
    }
    assert!(happened > 50, "{happened}");
}

#[test]
fn who_speaks_for_nobody_is_refused() {
    let plan = Plan::new().call(
        "one",
        "store",
        1,
        Fault::Request(microvisor_testkit::Mangle::Empty),
    );
    let system = system(plan, &both());
    let refused = system.drive("one", |env| attach(env, true).err());
    assert!(matches!(refused, Some(Error::Call(_))), "{refused:?}");
    // A guest's VMM that does not say where its rings are introduces nobody.
    let none = system.drive("two", |env| attach(env, false).err());
    assert_eq!(none, Some(Error::Store(StoreError::NoDomain)));
}
