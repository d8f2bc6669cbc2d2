//! The script: kills servers in several ways, calls them, and says what came of it.

use idl::admin::{AdminClient, Inventory};
use idl::bench::BenchClient;
use idl::operator::{GuestState, OperatorClient};
use idl::{Bytes, CallError, Failure};
use sdk::prelude::*;
use sdk::startup::PEERS;

use crate::server::{ECHO, FAULT, LIST, REFUSED};

/// Restarts that the measured ones follow, so that what is kept for good has been made.
const WARM_UP: u32 = 8;
const RESTARTS: u32 = 1000;
const CONSOLE_RESTARTS: u32 = 50;
/// The longest wait for anything.
const PATIENCE_SECONDS: u64 = 300;

type Client = BenchClient<EndpointTransport>;
type Admin = AdminClient<EndpointTransport>;

/// What a call came to: the answer's first byte, or the core's status.
pub fn call(server: &Client, what: u8) -> Result<u8, Status> {
    let mut bytes = [0; 31];
    bytes[0] = what;
    match server.echo(Bytes(bytes)) {
        Ok(answer) => Ok(answer.0[0]),
        Err(CallError::Failure(Failure::Transport(status))) => Err(status),
        // What a server of another version would lead to.
        Err(_) => Err(Status::Unsupported),
    }
}

/// Logs everything; the judge reads.
pub fn run(env: &Env) {
    let outcome = (|| {
        let server = |name: &str| {
            let wire = env
                .wires
                .iter()
                .find(|wire| wire.interface == "bench" && wire.server == name);
            let wire = wire.ok_or("a server is not wired")?;
            Client::connect(EndpointTransport(Cap::new(wire.slot))).map_err(|_| "no connection")
        };
        let admin = Admin::connect(env.transport("admin")).map_err(|_| "no admin")?;
        let operator =
            OperatorClient::connect(env.transport("operator")).map_err(|_| "no operator")?;
        let guest = |state| {
            wait_for(|| matches!(operator.guest(0), Ok(Some(guest)) if guest.state == state))
        };
        // Nothing else comes and goes while root's possessions are counted.
        guest(GuestState::Running)?;
        let victim = server("victim")?;
        once(env, &victim);
        policies(&server("mortal")?, &server("fragile")?);
        thousand(&victim, &admin)?;
        // The judge pauses the guest when it has seen its console, and lets it go on.
        log::info!("the console's turn, when the guest was paused");
        guest(GuestState::Paused)?;
        log::info!("paused");
        guest(GuestState::Running)?;
        consoles(env, &admin)
    })();
    match outcome {
        Ok(()) => log::info!("script ends"),
        Err(why) => log::info!("script stops: {why}"),
    }
    // On a slow line the console shows the last lines long after they were said.
    sdk::logging::drain();
}

fn patience() -> u64 {
    sdk::time::now().saturating_add(sdk::time::microseconds(PATIENCE_SECONDS * 1_000_000))
}

fn wait_for(mut holds: impl FnMut() -> bool) -> Result<(), &'static str> {
    let end = patience();
    while !holds() {
        let now = sdk::time::now();
        if now > end {
            return Err("what was waited for did not come");
        }
        // Only to look again; nothing depends on how long this is.
        let _ = sdk::time::sleep_until(now.saturating_add(sdk::time::microseconds(20_000)));
    }
    Ok(())
}

/// One restart, looked at closely.
fn once(env: &Env, victim: &Client) {
    log::info!("first instance: {:?}", call(victim, LIST));
    // Bits of earlier restarts are not this one's.
    let _ = env.notification().poll();
    log::info!("caller of the killed server: {:?}", call(victim, FAULT));
    log::info!("next call: {:?}", call(victim, ECHO));
    let told = env.notification().wait(patience());
    log::info!("told: {:?}", told.map(|bits| bits & PEERS != 0));
    log::info!("second instance: {:?}", call(victim, LIST));
    log::info!("caller of the refused server: {:?}", call(victim, REFUSED));
}

fn policies(mortal: &Client, fragile: &Client) {
    let died = call(mortal, FAULT);
    log::info!("restart never: {died:?}, then {:?}", call(mortal, ECHO));
    let deaths = [FAULT; 3].map(|way| call(fragile, way));
    log::info!("restart twice: {deaths:?}, then {:?}", call(fragile, ECHO));
}

/// Kills a server so many times; how many of its callers heard `Restarted`.
fn kill(victim: &Client, times: u32) -> usize {
    (0..times)
        .filter(|_| call(victim, FAULT) == Err(Status::Restarted))
        .count()
}

fn inventory(admin: &Admin) -> Result<Inventory, &'static str> {
    admin.inventory().map_err(|_| "root does not count")
}

fn compare(what: &str, before: Inventory, after: Inventory) {
    log::info!("before: {before:?}");
    log::info!("after: {after:?}");
    let same = if before == after {
        "the same"
    } else {
        "different"
    };
    log::info!("{what}: root has {same}");
}

fn thousand(victim: &Client, admin: &Admin) -> Result<(), &'static str> {
    kill(victim, WARM_UP);
    let before = inventory(admin)?;
    let heard = kill(victim, RESTARTS);
    log::info!("of {RESTARTS} callers {heard} heard Restarted");
    log::info!("last instance: {:?}", call(victim, ECHO));
    compare("after 1000 restarts", before, inventory(admin)?);
    Ok(())
}

fn kill_console(env: &Env, admin: &Admin) -> Result<(), &'static str> {
    let _ = env.notification().poll();
    match admin.kill(idl::name("console")) {
        Ok(()) => {}
        Err(CallError::Answer(_)) => return Err("root does not kill the console"),
        Err(CallError::Failure(_)) => return Err("root does not answer"),
    }
    match env.notification().wait(patience()) {
        Ok(bits) if bits & PEERS != 0 => Ok(()),
        _ => Err("nobody tells of the console's restart"),
    }
}

fn consoles(env: &Env, admin: &Admin) -> Result<(), &'static str> {
    for _ in 0..WARM_UP {
        kill_console(env, admin)?;
    }
    let before = inventory(admin)?;
    for number in 1..=CONSOLE_RESTARTS {
        log::info!("line before console restart {number}");
        kill_console(env, admin)?;
        log::info!("line after console restart {number}");
    }
    compare(
        "after 50 restarts of the console",
        before,
        inventory(admin)?,
    );
    Ok(())
}
