#!/bin/sh
# Makes the certificates of the scripted server: a root, a leaf for localhost and the loopback addresses, and one for another host.
# They last for a hundred years and protect nothing: their keys are public.
set -eu
cd "$(dirname "$0")"
days=36500
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days $days -subj "/CN=tautline test root" \
    -keyout root.key -out root.pem -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign"
leaf() {
    openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$1.key" -out "$1.csr"
    printf 'subjectAltName=%s\nbasicConstraints=critical,CA:FALSE\nextendedKeyUsage=serverAuth\n' "$2" > "$1.ext"
    openssl x509 -req -in "$1.csr" -CA root.pem -CAkey root.key -CAcreateserial -days $days -extfile "$1.ext" -out "$1.pem"
    rm "$1.csr" "$1.ext"
}
leaf localhost "DNS:localhost,IP:127.0.0.1,IP:::1"
leaf stranger "DNS:stranger.example"
rm -f root.key root.srl
