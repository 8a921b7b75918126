package patroni

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"os/exec"
	"path/filepath"
	"time"
)

// Node is a server of a cluster with its Patroni.
type Node struct {
	cluster *Cluster
	name    string
	dir     string
	addr    string // of PostgreSQL
	rest    string // of Patroni
	patroni *exec.Cmd
}

// Name is what the node is called.
func (n *Node) Name() string { return n.name }

// Addr is the address of the node's PostgreSQL.
func (n *Node) Addr() string { return n.addr }

func (n *Node) data() string   { return filepath.Join(n.dir, "data") }
func (n *Node) config() string { return filepath.Join(n.dir, "patroni.yml") }

// newNode makes the node's directory and its Patroni's configuration.
func (c *Cluster) newNode(name string) (*Node, error) {
	n := &Node{cluster: c, name: name}
	var err error
	if n.dir, err = c.sandbox.Mkdir(name); err != nil {
		return nil, err
	}
	if n.addr, err = freeAddress(); err != nil {
		return nil, err
	}
	if n.rest, err = freeAddress(); err != nil {
		return nil, err
	}
	content, err := json.Marshal(n.settings()) // every JSON is a YAML
	if err != nil {
		return nil, fmt.Errorf("patroni: %w", err)
	}
	return n, c.sandbox.WriteFile(n.config(), content)
}

type object = map[string]any

func (n *Node) settings() object {
	c := n.cluster
	login := func(name string) object { return object{"username": name, "password": c.password} }
	return object{
		"scope": scope, "name": n.name,
		"restapi": object{"listen": n.rest, "connect_address": n.rest},
		// Not etcd's third protocol: there, Patroni 3.0 renews the leader's key without a look at whose it is, so that a
		// leader that was frozen takes the lead back from the one that has replaced it.
		"etcd": object{"host": c.etcd},
		"bootstrap": object{
			"dcs":    c.dynamic(),
			"initdb": []any{"no-sync", object{"encoding": "UTF8"}, object{"locale": "C"}, object{"auth": "password"}},
			"pg_hba": []string{
				"host all all 127.0.0.1/32 password",
				"host replication " + replicator + " 127.0.0.1/32 password",
			},
		},
		"postgresql": object{
			"listen": n.addr, "connect_address": n.addr, "data_dir": n.data(), "bin_dir": c.bindir,
			"pgpass":         filepath.Join(n.dir, "pgpass"),
			"authentication": object{"superuser": login(superuser), "replication": login(replicator)},
			"parameters":     object{"unix_socket_directories": "."}, // the data directory
		},
	}
}

// dynamic are the settings of the whole cluster, which Patroni keeps in etcd.
func (c *Cluster) dynamic() object {
	return object{
		"ttl": int(Lease / time.Second), "loop_wait": int(Loop / time.Second), "retry_timeout": 5,
		// A primary that has crashed is not started again as one.
		"primary_start_timeout": 0,
		// A standby that is behind may lead, as on a cluster whose writes come in bursts.
		"maximum_lag_on_failover": 256 << 20,
		"synchronous_mode":        c.synchronous,
		"postgresql": object{
			"use_pg_rewind": true, "use_slots": true,
			"remove_data_directory_on_rewind_failure": true,
			"parameters": object{
				"max_connections": 300, "wal_keep_size": "256MB", "max_wal_size": "256MB",
				"fsync":                      "off", // what was written outlives a killed process, in the kernel's cache
				"dynamic_shared_memory_type": "mmap",
			},
		},
	}
}

func (n *Node) start() error {
	if err := n.cluster.launch(n.dir, []string{"PATRONI_"}, n.cluster.programs.patroni, n.config()); err != nil {
		return err
	}
	n.patroni = n.cluster.running[len(n.cluster.running)-1]
	return nil
}

// health is a client for questions to Patroni, which answers at once if it can.
var health = &http.Client{
	Timeout:   2 * time.Second,
	Transport: &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{Timeout: time.Second}).DialContext},
}

// is asks the node's Patroni as a load balancer does, by the status of a path: "primary", "replica" or "synchronous".
func (n *Node) is(ctx context.Context, role string) bool {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+n.rest+"/"+role, http.NoBody)
	if err != nil {
		return false
	}
	response, err := health.Do(request)
	if err != nil {
		return false
	}
	_ = response.Body.Close()
	return response.StatusCode == http.StatusOK
}
