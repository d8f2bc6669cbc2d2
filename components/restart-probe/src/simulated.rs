//! The probe's own servers and its way of calling them, in a simulated system: what the group
//! `restart` judges on the machine has to be what the probe says, so the probe is tested first.
//! (Writing to forbidden addresses is left to the machine: it would end this process.)

use idl::admin::{Admin, AdminError, AdminServer, Inventory};
use idl::bench::BenchClient;
use microvisor_testkit::{Component, Death, Fault, Plan, Restart, System, Told, sweep};
use sdk::prelude::*;

use crate::caller::call;
use crate::server::{ECHO, LIST, REFUSED};

fn system(plan: Plan, restart: Restart) -> System {
    let victim = Component::new("victim", crate::component)
        .serves("bench")
        .needs("supervisor")
        .restart(restart);
    System::start(
        plan,
        vec![victim, Component::driven("tester").needs("bench")],
    )
}

fn connected(env: &Env) -> Option<BenchClient<EndpointTransport>> {
    BenchClient::connect(env.transport("bench")).ok()
}

#[test]
fn a_server_answers_and_says_that_it_is_ready() {
    let system = system(Plan::new(), Restart::Never);
    assert_eq!(system.told("victim"), [Told::Ready]);
    let answer = system.drive("tester", |env| call(&connected(env)?, ECHO).ok());
    assert_eq!(answer, Some(ECHO));
}

#[test]
fn a_refused_capability_is_a_death_that_names_the_refusal() {
    let system = system(Plan::new(), Restart::Times(1));
    let heard = system.drive("tester", |env| {
        let server = connected(env).unwrap();
        [REFUSED, ECHO, REFUSED, ECHO].map(|what| call(&server, what))
    });
    let [restarted, answered] = [Err(Status::Restarted), Ok(ECHO)];
    let [aborted, gone] = [Err(Status::Aborted), Err(Status::InvalidCap)];
    assert_eq!(heard, [restarted, answered, aborted, gone]);
    let named = |death: &Death| matches!(death, Death::Panic(text) if text.contains("WrongKind"));
    assert!(system.deaths("victim").iter().all(named));
}

#[test]
fn each_instance_lists_the_same_capabilities() {
    let system = system(Plan::new(), Restart::Always);
    let list = |system: &System| {
        let before = system.log("victim").len();
        let heard = system.drive("tester", |env| call(&connected(env).unwrap(), LIST));
        assert_eq!(heard, Ok(LIST));
        system.log("victim")[before..].to_vec()
    };
    let first = list(&system);
    assert!(first.len() > 5 && first.last().unwrap() == "holds no more");
    for _ in 0..50 {
        system.kill("victim");
        assert_eq!(list(&system), first);
    }
}

#[test]
fn the_caller_hears_the_cores_status_and_not_another() {
    let heard = |fault| {
        let plan = Plan::new().call("tester", "bench", 1, fault);
        let system = system(plan, Restart::Always);
        system.drive("tester", |env| call(&connected(env).unwrap(), ECHO))
    };
    assert_eq!(heard(Fault::DieBefore), Err(Status::Restarted));
    assert_eq!(heard(Fault::DieAfter), Err(Status::Restarted));
    assert_eq!(heard(Fault::Cancel), Err(Status::Cancelled));
    assert_eq!(heard(Fault::Delay(1 << 30)), Ok(ECHO));
}

/// Root's side of `admin`, as far as the script's arithmetic needs it.
struct Desk;

impl AdminServer for Desk {
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
    fn kill(&mut self, _: u64, _: idl::Name) -> Result<(), AdminError> {
        Err(AdminError::NotRunning)
    }
}

impl Notified for Desk {
    fn notified(&mut self, _: u64) {}
}

/// The script cannot do without the operator's view of guests.
#[test]
fn a_script_that_lacks_a_wire_dies_naming_it() {
    let root = Component::new("desk", |env: Env| {
        let endpoint = env.endpoint("admin");
        if let Ok(mut receiver) = Receiver::new(endpoint, REPLY, 0) {
            let _ = serve::<Admin, _>(&mut receiver, &mut Desk);
        }
    });
    let caller = Component::new("caller", crate::component).needs("admin");
    let system = System::start(Plan::new(), vec![root.serves("admin"), caller]);
    let deaths = system.deaths("caller");
    let named = matches!(&deaths[..], [Death::Panic(text)] if text.contains("\"operator\""));
    assert!(named, "{deaths:?}");
}

#[test]
fn the_probe_survives_every_fault_at_every_place() {
    let swept = sweep(|plan| {
        let system = system(plan, Restart::Always);
        system.mark();
        let heard = system.drive("tester", |env| {
            let once = |what| call(&connected(env)?, what).ok();
            let _ = (once(ECHO), once(LIST));
            (0..3).find_map(|_| once(ECHO))
        });
        assert_eq!(heard, Some(ECHO));
        system
    });
    assert!(swept.happened > 0, "{swept:?}");
}
