#!/bin/sh
# What apt-get does to a disk: a package with many files is unpacked (dpkg writes each beside its place, has
# it on the disk, renames it) and configured, and what came out is compared with the package's checksums, the
# second time from the disk. Then the same files as an archive, unpacked elsewhere and moved.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get install -y -q -o Acquire::Languages=none /srv/xkb-data_*.deb >/var/log/load.log 2>&1
dpkg --verify xkb-data
cd /usr/share/X11/xkb
find . -type f -print0 | sort -z | xargs -0 sha256sum >/root/sums
mkdir /root/unpacked.new
tar -cf - . | tar -xf - -C /root/unpacked.new
sync
mv /root/unpacked.new /root/unpacked
sync
echo 3 >/proc/sys/vm/drop_caches
dpkg --verify xkb-data
cd /root/unpacked
sha256sum --quiet -c /root/sums
echo "$(wc -l </root/sums) files are what they were"
