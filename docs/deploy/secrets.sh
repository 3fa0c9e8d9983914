#!/bin/sh
# Make up the secrets of docker-compose.yaml in .env, for nobody else to read. One that is there is not touched.
set -eu
umask 077
set -o noclobber
cat > .env <<END
ADMIN_PASSWORD=$(openssl rand -hex 12)
FERNET_KEY=$(openssl rand -base64 32 | tr '+/' '-_')
JWT_SECRET=$(openssl rand -hex 32)
POSTGRES_PASSWORD=$(openssl rand -hex 24)
SECRET_KEY=$(openssl rand -hex 32)
END
