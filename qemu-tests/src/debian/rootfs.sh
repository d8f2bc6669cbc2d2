#!/bin/sh
# Makes the root file system that `rootfs.rs` puts onto a disk: FOLDER/tree, FOLDER/root.ext4, kernel and
# initial RAM disk. Runs as root in a mount namespace of its own, so that nothing that debootstrap mounts
# outlives it. Changes nothing outside of FOLDER.
#
# usage: rootfs.sh FOLDER MIRROR KEYRING FILES BLOCKS
set -eu
umask 022
export LC_ALL=C PATH=/usr/sbin:/usr/bin:/sbin:/bin
folder=$1 mirror=$2 keyring=$3 files=$4 blocks=$5
tree=$folder/tree

debootstrap --variant=minbase ${keyring:+--keyring="$keyring"} \
    --include=systemd-sysv,udev,e2fsprogs,initramfs-tools,zstd,linux-image-cloud-amd64,xenstore-utils \
    bookworm "$tree" "$mirror"

# What `apt-get` is to install in the guest, which has no network: one package with many files.
chroot "$tree" sh -c 'cd /srv && apt-get -q -o APT::Sandbox::User=root download xkb-data'

echo debian >"$tree/etc/hostname"
echo 'LABEL=root / ext4 errors=remount-ro 0 1' >"$tree/etc/fstab"
# A login without a password, for the tests that type it.
sed -i 's/^root:[^:]*:/root::/' "$tree/etc/shadow"
# No first boot, so that every boot does the same.
echo 6d6963726f7669736f722d7465737421 >"$tree/etc/machine-id"
mkdir -p "$tree/etc/systemd/journald.conf.d" "$tree/etc/systemd/system.conf.d"
printf '[Journal]\nStorage=volatile\n' >"$tree/etc/systemd/journald.conf.d/volatile.conf"
# An emulated CPU is slow, and a timer that fires amid a measurement is noise.
printf '[Manager]\nDefaultTimeoutStartSec=600\nDefaultDeviceTimeoutSec=600\n' \
    >"$tree/etc/systemd/system.conf.d/patience.conf"
for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer \
    e2scrub_reap.service fstrim.timer getty@tty1.service getty-static.service \
    systemd-pstore.service systemd-update-utmp.service systemd-update-utmp-runlevel.service \
    systemd-random-seed.service systemd-sysusers.service systemd-journal-flush.service \
    modprobe@.service dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount \
    sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount; do
    ln -sf /dev/null "$tree/etc/systemd/system/$unit"
done
cp -R "$files/." "$tree/"

cp "$tree"/boot/vmlinuz-* "$folder/vmlinuz"
cp "$tree"/boot/initrd.img-* "$folder/initrd.img"
rm -rf "$tree"/usr/share/doc/* "$tree"/usr/share/man/* "$tree"/usr/share/locale/* \
    "$tree"/usr/share/info/* "$tree"/var/cache/apt/*.bin "$tree"/var/cache/apt/archives/*.deb \
    "$tree"/var/lib/apt/lists/*_* "$tree"/var/log/*.log

if grep -F " $tree/" /proc/self/mountinfo; then
    echo "something is still mounted in the tree" >&2
    exit 1
fi
identity=6d696372-6f76-6973-6f72-2d7465737421
E2FSPROGS_FAKE_TIME=1700000000 mke2fs -q -F -t ext4 -L root -U $identity \
    -E "hash_seed=$identity,lazy_itable_init=0,lazy_journal_init=0" \
    -d "$tree" "$folder/root.ext4" "$blocks"
