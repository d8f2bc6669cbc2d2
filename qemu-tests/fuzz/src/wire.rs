//! Manifests, messages between components, and what a component starts with: all postcard.

use crate::take;
use idl::manifest::Manifest;
use idl::wire::Writer;
use idl::{PAYLOAD_MAX, Refusal};

pub fn manifest(data: &[u8]) {
    if let Ok(manifest) = Manifest::decode(data) {
        let again = Manifest::decode(&manifest.encode());
        assert_eq!(again, Ok(manifest), "what was read is not what is written");
    }
}

pub fn manifest_seeds() -> Vec<Vec<u8>> {
    let mut bytes = b"mvmf\x02\0\0\0".to_vec();
    bytes.extend([0; 64]);
    vec![bytes]
}

/// A request that is read can be written, and reads as the same again.
macro_rules! requests {
    ($($interface:ident::$request:ident)*) => {
        &[$(|method, bytes, caps| {
            use idl::$interface::$request;
            let request = $request::decode(method, bytes, caps)?;
            let mut out = [0; PAYLOAD_MAX];
            let mut writer = Writer::new(&mut out);
            assert_eq!(request.encode(&mut writer), Ok(()));
            let (length, caps, count) = writer.finish();
            let again = $request::decode(request.method(), &out[..length], &caps[..count]);
            assert_eq!(again, Ok(request), "what was read is not what is written");
            Ok(())
        }),*]
    };
}

type Decode = fn(u32, &[u8], &[u32]) -> Result<(), Refusal>;

const REQUESTS: &[Decode] = requests! {
    admin::AdminRequest bench::BenchRequest block::BlockRequest builder::BuilderRequest
    console::ConsoleRequest hardware::HardwareRequest operator::OperatorRequest pci::PciRequest
    supervisor::SupervisorRequest
};

/// Interface, method, number of capabilities, then the payload.
pub fn messages(mut data: &[u8]) {
    let [interface, method, count] = take(&mut data);
    let decode = REQUESTS[usize::from(interface) % REQUESTS.len()];
    let caps = [7, 8, 9, 10, 11];
    let data = &data[..data.len().min(PAYLOAD_MAX)];
    let _ = decode(method.into(), data, &caps[..usize::from(count) % 6]);
}

pub fn messages_seeds() -> Vec<Vec<u8>> {
    let each = (0..REQUESTS.len() as u8).flat_map(|interface| {
        (1..12).map(move |method| [&[interface, method, method % 3][..], &[0; 24]].concat())
    });
    each.collect()
}

pub fn startup(data: &[u8]) {
    let Ok(startup) = sdk::startup::read(data) else {
        return;
    };
    let _ = (
        startup.wire("console"),
        startup.served("console"),
        startup.ports(0x3f8, 8),
    );
    let mut page = vec![0; 2 * data.len() + 4096];
    assert_eq!(sdk::startup::write(&startup, &mut page), Ok(()));
    let again = sdk::startup::read(&page).map(|again| format!("{again:?}"));
    assert_eq!(again, Ok(format!("{startup:?}")));
}

pub fn startup_seeds() -> Vec<Vec<u8>> {
    let mut page = vec![0; 4096];
    let written = sdk::startup::write(&Default::default(), &mut page);
    page.truncate(if written.is_ok() { 256 } else { 0 });
    vec![page]
}
