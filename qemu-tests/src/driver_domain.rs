//! Group `devices`: a driver domain. Linux's own blkback in one guest serves disks to two others, so that pages
//! are granted and events sent from guest to guest, with no component between (`systems/driver-domain.toml`).
//! Then guests are killed amid that, on either side: what the other side had of them is gone, and it goes on.

use anyhow::{Context, Result, ensure};
use image_builder::qemu::{GUEST_FAILED, Machine};

use crate::machines::Machines;
use crate::report::{Claim, Report};
use crate::session::Session;
use crate::store::printed;

/// Seconds for a command, and for what it leads to elsewhere.
const SOON: u64 = 180;
/// Seconds until Linux is in its shell, in three guests at once.
const BOOT: u64 = 900;
/// Seconds for reading and writing a few MiB.
const LOAD: u64 = 600;
/// Shows the console of guest `other`, `driver`, `client`.
const OTHER: &str = "\x1d1";
const DRIVER: &str = "\x1d2";
const CLIENT: &str = "\x1d3";
/// What a hotplug script does for a disk: names the device that the kernel is to serve.
const HOTPLUG: &str = "for front in $(xenstore-list backend/vbd); do \
                       for disk in $(xenstore-list backend/vbd/$front); do \
                       path=backend/vbd/$front/$disk; xenstore-write $path/physical-device \
                       $(stat -c %t:%T /dev/$(xenstore-read $path/params)); done; done";
/// Waits for the disk, as long as a command may take.
const DISK: &str = "until [ -b /dev/xvda ]; do sleep 1; done";
/// Writes 2 MiB that nobody else has, reads them back from the disk and prints both sums.
const PATTERN: &str = "dd if=/dev/urandom of=/tmp/pattern bs=64k count=32 2>/dev/null; \
                       dd if=/tmp/pattern of=/dev/xvda bs=64k conv=fsync 2>/dev/null; \
                       echo 3 >/proc/sys/vm/drop_caches; \
                       sha256sum </tmp/pattern; dd if=/dev/xvda bs=64k count=32 2>/dev/null | sha256sum";

/// Runs the machine.
pub fn run(machines: &mut Machines, report: &mut Report) {
    if !machines.wants("driver-domain") {
        return;
    }
    let session = machines
        .image("driver-domain")
        .and_then(|image| machines.boot("driver-domain", &image, &Machine::of(&image)));
    report.prefixed("driver-domain", session, CLAIMS);
}

fn says(session: &mut Session, command: &str, expected: &str) -> Result<()> {
    let said = printed(session, command)?;
    ensure!(said == expected, "{command}: {said:?}, not {expected:?}");
    Ok(())
}

/// The checksums that a command prints.
fn sums(session: &mut Session, command: &str) -> Result<Vec<String>> {
    let text = session.shell(command, LOAD)?;
    let words = text.split_whitespace();
    let sums = words.filter(|word| word.len() == 64 && word.bytes().all(|b| b.is_ascii_hexdigit()));
    Ok(sums.map(str::to_owned).collect())
}

/// A guest writes its disk and reads the same back; the driver domain, of which `device` is the disk, has it
/// too.
fn written_and_there(session: &mut Session, guest: &str, device: &str) -> Result<()> {
    session.send(guest)?;
    let own = sums(session, PATTERN)?;
    session.send(DRIVER)?;
    // The back end writes past what the driver domain remembers of its own reading.
    let there = format!(
        "echo 3 >/proc/sys/vm/drop_caches; dd if={device} bs=64k count=32 2>/dev/null | sha256sum"
    );
    let there = sums(session, &there)?;
    let [written, read] = own.as_slice() else {
        anyhow::bail!("two sums were to be printed: {own:?}");
    };
    ensure!(written == read, "written {written}, read {read}");
    ensure!(
        there == [written.as_str()],
        "the driver domain has {there:?}, not {written}"
    );
    Ok(())
}

/// Events that a guest got from the other end of its disk's ring.
fn events(session: &mut Session, of: &str) -> Result<u64> {
    let count = format!("awk '/{of}/ {{ n += $2 }} END {{ print n + 0 }}' /proc/interrupts");
    printed(session, &count)?
        .parse()
        .with_context(|| format!("no count of {of}"))
}

/// The kernel has found nothing wrong with itself.
fn is_well(session: &mut Session) -> Result<()> {
    let wrong = "dmesg | grep -c -E 'BUG|Oops|Call Trace|soft lockup|general protection'; true";
    says(session, wrong, "0")
}

/// `other` has a VMM killed, by way of the store.
fn kill(session: &mut Session, guest: &str) -> Result<()> {
    session.send(OTHER)?;
    says(
        session,
        &format!("xenstore-write data/order 'kill vmm-{guest}'"),
        "",
    )?;
    session.saw(&format!("[root] guest {guest}: failed"), SOON)
}

const CLAIMS: &[Claim<Session>] = &[
    ("linux_boots_to_a_shell", |s| {
        // Three of them at once.
        s.expect("End with: poweroff -f", BOOT)?;
        s.shell("true", SOON).map(|_| ())
    }),
    ("the_driver_domain_is_told_what_to_serve", |s| {
        s.send(DRIVER)?;
        // It has been in its shell for long, or comes to it now.
        s.shell("true", BOOT)?;
        let disk = "p=backend/vbd/3/51712; \
                    for n in frontend frontend-id params mode type online state; do \
                    xenstore-read $p/$n; done";
        let told = "/local/domain/3/device/vbd/51712\n3\nram0\nw\nphy\n1\n1";
        says(s, disk, told)
    }),
    ("its_kernels_blkback_takes_both_disks", |s| {
        let modules = "insmod /lib/modules/brd.ko rd_nr=2 rd_size=8192; insmod /lib/modules/loop.ko; \
                       dd if=/dev/zero of=/tmp/file bs=1M count=4 2>/dev/null; \
                       losetup /dev/loop0 /tmp/file; insmod /lib/modules/xen-blkback.ko; ls /sys/bus/xen-backend/drivers";
        says(s, modules, "vbd")?;
        says(s, HOTPLUG, "")
    }),
    ("two_guests_find_their_disks", |s| {
        for (guest, sectors) in [(OTHER, "8192"), (CLIENT, "16384")] {
            s.send(guest)?;
            s.shell("true", BOOT)?;
            let disk =
                format!("insmod /lib/modules/xen-blkfront.ko; {DISK}; cat /sys/block/xvda/size");
            says(s, &disk, sectors)?;
            says(
                s,
                "xenstore-read device/vbd/51712/state device/vbd/51712/backend-id",
                "4\n2",
            )?;
        }
        Ok(())
    }),
    (
        "what_a_guest_writes_is_in_the_driver_domains_ram_disk",
        |s| written_and_there(s, CLIENT, "/dev/ram0"),
    ),
    ("what_another_writes_is_in_the_driver_domains_file", |s| {
        written_and_there(s, OTHER, "/tmp/file")
    }),
    ("both_ends_were_told_by_events", |s| {
        s.send(DRIVER)?;
        let back = events(s, "blkif-backend")?;
        s.send(CLIENT)?;
        let front = events(s, "blkif")?;
        ensure!(
            back > 0 && front > 0,
            "driver domain {back}, client {front}"
        );
        Ok(())
    }),
    ("a_guest_lets_go_of_a_disk_and_both_ends_are_closed", |s| {
        s.send(CLIENT)?;
        let unbind = "until [ -b /dev/xvdb ]; do sleep 1; done; \
                      echo vbd-51728 >/sys/bus/xen/drivers/vbd/unbind; ls /dev/xvdb 2>/dev/null; \
                      xenstore-read device/vbd/51728/state";
        says(s, unbind, "6")?;
        s.send(DRIVER)?;
        let closed = "until [ $(xenstore-read backend/vbd/3/51728/state) = 6 ]; do sleep 1; done";
        says(s, closed, "")?;
        written_and_there(s, CLIENT, "/dev/ram0")
    }),
    (
        "a_guest_killed_amid_writes_leaves_its_driver_domain_well",
        |s| {
            s.send(CLIENT)?;
            let writes = "for n in 0 1 2 3; do (while :; do \
                      dd if=/tmp/pattern of=/dev/xvda bs=2M oflag=direct 2>/dev/null; done) & done; true";
            s.shell(writes, SOON)?;
            kill(s, "client")?;
            s.send(DRIVER)?;
            // The kernel lets go of a guest's pages when it is done with them.
            says(
                s,
                "while [ -e /sys/bus/xen-backend/devices/vbd-3-51712 ]; do sleep 1; done",
                "",
            )?;
            is_well(s)?;
            says(
                s,
                "dd if=/dev/ram0 bs=1M count=8 2>/dev/null | wc -c",
                "8388608",
            )
        },
    ),
    ("the_other_guest_keeps_its_disk", |s| {
        written_and_there(s, OTHER, "/tmp/file")
    }),
    (
        "a_driver_domain_that_is_killed_stops_its_guests_disk_and_nothing_else",
        |s| {
            kill(s, "driver")?;
            says(
                s,
                "dd if=/dev/xvda of=/dev/null bs=64k iflag=direct 2>/dev/null & echo alive",
                "alive",
            )?;
            says(s, "sha256sum /tmp/pattern | wc -w", "2")?;
            says(s, "xenstore-read name", "other")?;
            is_well(s)
        },
    ),
    ("the_last_guest_goes", |s| {
        // Its disk answers no more, so nothing is to be written back.
        s.send("poweroff -n -f\n")?;
        let status = s.wait(SOON)?;
        ensure!(status == GUEST_FAILED, "QEMU's status is {status}");
        Ok(())
    }),
];
