#!/bin/bash
# Builds a machine inside fresh namespaces and runs its first process; see test_cluster_launch.py, which sets the
# variables. Its root folder is an overlay over this one's, so nothing that is written there lasts.
set -e
mount --make-rprivate /
mount -t tmpfs none /mnt
mkdir /mnt/up /mnt/work /mnt/root
mount -t overlay none -o lowerdir=/,upperdir=/mnt/up,workdir=/mnt/work /mnt/root
[ -n "$NAME" ] || exit 0 # only to see whether it can be done

cd /mnt/root
mount -t proc none proc
mount --rbind /sys sys
mount -t tmpfs none dev
for node in null zero full random urandom tty; do
    touch dev/$node
    mount --bind /dev/$node dev/$node
done
mkdir dev/pts dev/shm
mount -t devpts none dev/pts -o newinstance,ptmxmode=0666,mode=620
ln -s pts/ptmx dev/ptmx
ln -s /proc/self/fd dev/fd
for folder in dev/shm tmp run; do mount -t tmpfs none $folder; done
chmod 1777 tmp
for folder in $KEEP; do mkdir -p ".$folder"; mount --bind "$folder" ".$folder"; done
mkdir -p run/sshd shared home/chem/.ssh home/chem/.ray home/chem/medrec
mount --bind "$FOLDER" ".$PLACE"
sed -i '1i chem:x:0:0::/home/chem:/bin/bash' etc/passwd
rm -f etc/resolv.conf etc/hosts
echo 'nameserver 127.0.0.1' > etc/resolv.conf
echo "127.0.0.1 localhost $NAME" > etc/hosts
ln -sfn "$VENV" home/chem/env
echo 'export PATH=/home/chem/env/bin:$PATH' > home/chem/.bashrc
echo '. ~/.bashrc' > home/chem/.profile
cp "$KEYS"/* home/chem/.ssh/
chmod 700 home/chem home/chem/.ssh
chmod 600 home/chem/.ssh/*
chown -R 0:0 home/chem/.ssh
ip link set lo up
hostname "$NAME"
exec chroot . env -i $SETTINGS "$PYTHON" -c "$INIT"
