//! What it does.

use alloc::format;
use alloc::string::String;

use idl::admin::AdminClient;
use sdk::prelude::*;
use sdk::startup::PEERS;
use sdk::store::{Error, Event, Store};

/// Bit of the own notification by which the store says that events wait.
const STORE: u64 = 1;
/// The guest that gives orders.
const ORDER: &str = "/local/domain/1/data/order";
const ANSWER: &str = "/local/domain/1/data/answer";

/// Until the store is gone for good.
pub fn main(env: Env) {
    if let Err(error) = run(&env) {
        log::error!("no store: {error:?}");
    }
}

fn run(env: &Env) -> Result<(), Error> {
    let own = env.notification();
    let core = |status| Error::Call(idl::Failure::Transport(status));
    let wake = own.mint(Rights::SIGNAL, STORE).map_err(core)?;
    let mut store = Store::attach(env.transport("store"), None, wake)?;
    store.write("/tool/probe/long", "x".repeat(3000).as_bytes())?;
    let long = store.read("/tool/probe/long")?.len();
    let names = store.directory("/tool/probe")?;
    let none = store.read("/tool/probe/none");
    log::info!("read {long} bytes; children {names:?}; {none:?}");
    store.remove("/tool/probe/long")?;
    for (path, token) in [
        ("@introduceDomain", "special"),
        ("@releaseDomain", "special"),
        (ORDER, "order"),
    ] {
        store.watch(path, token)?;
    }
    loop {
        for event in store.fired()? {
            fired(env, &mut store, &event)?;
        }
        let bits = own.wait(FOREVER).map_err(core)?;
        if bits & PEERS != 0 {
            log::info!("told of a peer");
        }
        store.woken();
    }
}

fn fired(env: &Env, store: &mut Store, event: &Event) -> Result<(), Error> {
    let Event { path, token } = event;
    log::info!("fired: {path} {token}");
    if path != ORDER {
        return Ok(());
    }
    let order = match store.read(ORDER) {
        Ok(order) => String::from_utf8_lossy(&order).into_owned(),
        // It is not there yet.
        Err(Error::Refused(_)) => return Ok(()),
        Err(error) => return Err(error),
    };
    // A watch fires when the store is started again, too: an order is carried out once.
    match store.remove(ORDER) {
        Ok(()) | Err(Error::Refused(_)) => {}
        Err(error) => return Err(error),
    }
    log::info!("order: {order}");
    if let Some(victim) = order.strip_prefix("kill") {
        let victim = match victim.trim() {
            "" => "xenstore",
            victim => victim,
        };
        let killed =
            AdminClient::connect(env.transport("admin")).map(|admin| admin.kill(idl::name(victim)));
        log::info!("killed: {killed:?}");
        return Ok(());
    }
    store.write(ANSWER, format!("{order}, too").as_bytes())
}
