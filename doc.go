// Package pgbaton locks things with the PostgreSQL that a service already has.
package pgbaton
