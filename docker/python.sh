#!/bin/sh
# Unpacks the distribution's python3, with all that the base lacks for it, into the working directory: ./usr is a copy
# for a final stage, in which nothing may be installed.
set -eu

apt-get update
apt-get install --yes --no-install-recommends --download-only python3
for package in /var/cache/apt/archives/*.deb; do
  dpkg-deb --extract "$package" .
done
# Older packages still name /lib, which is a link into /usr on the base.
if [ -d lib ]; then cp --archive lib/. usr/lib/; fi
[ -e usr/bin/python3 ] || { echo "error: the packages of this distribution hold no python3" >&2; exit 69; }
rm -rf usr/share/doc usr/share/man /var/cache/apt/archives /var/lib/apt/lists/*
