#!/bin/bash
# First process of a machine: a root of its own over this one's, its own /tmp, /run and /dev/shm, and sshd.
#
#   machine_init.sh NAME FOLDER BASE SHARED HOSTS
set -euo pipefail
name=$1 folder=$2 base=$3 shared=$4 hosts=$5

mount --make-rprivate /
mkdir -p "$folder"/{upper,work,root,tmp}
mount -t overlay overlay -o "lowerdir=$base:/,upperdir=$folder/upper,workdir=$folder/work" "$folder/root"
cd "$folder/root"
mount -t proc proc proc
mount -t sysfs sys sys
mount --rbind /dev dev
mount --make-rslave dev
mount -t tmpfs -o size=9g shm dev/shm
mount -t tmpfs run run
mkdir -p run/sshd shared old
mount --bind "$folder/tmp" tmp
mount --bind "$shared" shared
chmod 1777 tmp shared
hostname "$name"
cp "$hosts" etc/hosts
pivot_root . old
umount -l /old
cd /
env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin /usr/sbin/sshd -e 2> /var/log/sshd.log
# Children of processes that ended become this one's.
while :; do wait; sleep 1; done
