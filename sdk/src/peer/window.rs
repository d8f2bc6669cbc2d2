//! Addresses for granted pages: used again and again, so that page tables are not.

use super::*;

static ROOT: Mutex<Option<EndpointTransport>> = Mutex::new(None);
static FREE: Mutex<(u64, Vec<u64>)> = Mutex::new((GRANTS_ADDRESS, Vec::new()));

/// Root, who is also asked to take empty pages away.
pub fn root(root: EndpointTransport) -> Result<PeersClient<EndpointTransport>, Error> {
    let client = connected(PeersClient::connect(root))?;
    *ROOT.lock() = Some(root);
    Ok(client)
}

/// An address that nothing of ours is mapped at.
pub fn take() -> Option<u64> {
    let mut free = FREE.lock();
    if let Some(address) = free.1.pop() {
        return Some(address);
    }
    let address = free.0;
    (address < GRANTS_ADDRESS + GRANTS_BYTES).then(|| {
        free.0 += FRAME;
        address
    })
}

pub fn give_back(address: u64) {
    FREE.lock().1.push(address);
}

/// Maps at an address, from which root's empty page is taken away first if one is there.
pub fn map_at(frame: Cap<Frame>, address: u64, flags: u64) -> Result<(), Status> {
    let map = || memory::map_into(memory::own(), OWN_SPACE, frame, address, flags);
    match map() {
        Err(Status::Occupied) => {
            let root = *ROOT.lock();
            let mend = |root| PeersClient::connect(root).ok()?.mend(address).ok();
            match root.and_then(mend) {
                Some(()) => map(),
                None => Err(Status::Occupied),
            }
        }
        other => other,
    }
}

/// Maps somewhere.
pub fn place(frame: Cap<Frame>, flags: u64) -> Result<u64, Status> {
    let address = take().ok_or(Status::NoMemory)?;
    map_at(frame, address, flags)
        .map(|()| address)
        // An address that stays occupied is not used again.
        .inspect_err(|status| {
            if *status != Status::Occupied {
                give_back(address);
            }
        })
}
