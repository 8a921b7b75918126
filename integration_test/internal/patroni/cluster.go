// Package patroni runs a cluster of three PostgreSQL servers under Patroni on this machine, with an etcd for it, and makes
// it fail over. Only loopback addresses with free ports are used; the programs are those of Debian's packages patroni and
// etcd-server, and of a PostgreSQL that has pg_basebackup and pg_rewind.
package patroni

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/pgbaton/pgbaton/integration_test/pgserver"
)

const (
	scope      = "ha" // the cluster's name
	superuser  = "postgres"
	replicator = "replicator"

	nodes         = 3
	startAttempts = 3 // with other ports each, when somebody else took one meanwhile

	patience = 3 * time.Minute // for anything that the cluster does by itself
	soon     = 50 * time.Millisecond
)

// Lease is how long a leader's key in etcd lives without a sign of life of its Patroni, and Loop how often it gives one. A
// primary that is frozen is replaced no sooner than Lease less Loop after that. They are Patroni's smallest ones by its documentation.
const (
	Lease = 20 * time.Second
	Loop  = time.Second
)

// Cluster is a running cluster.
type Cluster struct {
	synchronous bool
	bindir      string
	major       int
	password    string
	programs    programs

	sandbox *pgserver.Sandbox
	etcd    string // its address
	running []*exec.Cmd
	nodes   []*Node
	last    State // when it was last seen to be whole
}

// programs are the paths of what is not PostgreSQL's.
type programs struct{ patroni, patronictl, etcd string }

// Start starts a cluster and waits until one server leads and the others follow. In a synchronous cluster a transaction's
// commit waits for one of the others, where its synchronous_commit asks for that.
func Start(ctx context.Context, synchronous bool) (*Cluster, error) {
	c := &Cluster{synchronous: synchronous, password: strings.ToLower(rand.Text())}
	if err := c.find(); err != nil {
		return nil, err
	}
	for attempt := 1; ; attempt++ {
		err := c.start(ctx)
		if err == nil {
			return c, nil
		}
		taken := strings.Contains(c.Logs(), "ddress already in use")
		err = errors.Join(err, c.Stop(ctx))
		if !taken || attempt == startAttempts {
			return nil, err
		}
	}
}

// find looks for the programs.
func (c *Cluster) find() error {
	for name, path := range map[string]*string{
		"patroni": &c.programs.patroni, "patronictl": &c.programs.patronictl, "etcd": &c.programs.etcd,
	} {
		var err error
		if *path, err = exec.LookPath(name); err != nil {
			return fmt.Errorf("patroni: no %s here: integration_test/ensure-patroni.sh installs it as root of a Debian: %w", name, err)
		}
	}
	for _, dir := range pgserver.BinDirs() {
		if has(dir, "pg_basebackup") && has(dir, "pg_rewind") {
			c.bindir = dir
			return nil
		}
	}
	return errors.New("patroni: no PostgreSQL here that has pg_basebackup and pg_rewind: install the package postgresql")
}

func has(dir, program string) bool {
	_, err := os.Stat(filepath.Join(dir, program))
	return err == nil
}

func (c *Cluster) start(ctx context.Context) error {
	var err error
	if c.sandbox, err = pgserver.NewSandbox(); err != nil {
		return err
	}
	c.running, c.nodes = nil, nil
	if err = c.startEtcd(); err != nil {
		return err
	}
	for i := range nodes {
		n, err := c.newNode(fmt.Sprintf("n%d", i+1))
		if err != nil {
			return err
		}
		c.nodes = append(c.nodes, n)
	}
	for _, n := range c.nodes {
		if err := n.start(); err != nil {
			return err
		}
	}
	if c.last, err = c.AwaitWhole(ctx); err != nil {
		return err
	}
	version, err := ask[int](ctx, c.last.Leader, "SELECT current_setting('server_version_num')::int")
	c.major = version / 10000
	return err
}

func (c *Cluster) startEtcd() error {
	dir, err := c.sandbox.Mkdir("etcd")
	if err != nil {
		return err
	}
	client, err := freeAddress()
	if err != nil {
		return err
	}
	peer, err := freeAddress()
	if err != nil {
		return err
	}
	c.etcd = client
	return c.launch(dir, []string{"ETCD_"}, c.programs.etcd,
		"--name", "etcd", "--data-dir", filepath.Join(dir, "data"), "--log-level", "warn", "--enable-v2",
		"--listen-client-urls", "http://"+client, "--advertise-client-urls", "http://"+client,
		"--listen-peer-urls", "http://"+peer, "--initial-advertise-peer-urls", "http://"+peer,
		"--initial-cluster", "etcd=http://"+peer)
}

// launch starts a program that runs until the sandbox is removed, and writes its output into the directory.
func (c *Cluster) launch(dir string, without []string, program string, args ...string) error {
	log, err := os.Create(filepath.Join(dir, logName))
	if err != nil {
		return fmt.Errorf("patroni: %w", err)
	}
	defer log.Close()
	// Not the context of the caller: the program goes on after it.
	cmd := c.sandbox.Command(context.Background(), dir, without, program, args...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return fmt.Errorf("patroni: %w", err)
	}
	c.running = append(c.running, cmd)
	return nil
}

const logName = "output.log"

// Stop ends all programs of the cluster and removes its files.
func (c *Cluster) Stop(ctx context.Context) error {
	if c.sandbox == nil {
		return nil
	}
	err := c.sandbox.Remove(context.WithoutCancel(ctx))
	for _, cmd := range c.running {
		_ = cmd.Wait() // it was killed
	}
	c.sandbox, c.running = nil, nil
	return err
}

// Logs returns what the programs have written.
func (c *Cluster) Logs() string {
	if c.sandbox == nil {
		return ""
	}
	var all strings.Builder
	files, _ := filepath.Glob(filepath.Join(c.sandbox.Dir(), "*", logName)) // fails only for a bad pattern
	for _, file := range files {
		content, err := os.ReadFile(file)
		fmt.Fprintf(&all, "==> %s (%v)\n%s\n", filepath.Base(filepath.Dir(file)), err, content)
	}
	return all.String()
}

// Nodes are the servers.
func (c *Cluster) Nodes() []*Node { return c.nodes }

// Addresses are the addresses of the servers, whichever of them leads.
func (c *Cluster) Addresses() (list []string) {
	for _, n := range c.nodes {
		list = append(list, n.addr)
	}
	return list
}

// Major is the major version of the servers.
func (c *Cluster) Major() int { return c.major }

// Synchronous reports whether commits wait for another server.
func (c *Cluster) Synchronous() bool { return c.synchronous }

// Origin says for people what the servers are.
func (c *Cluster) Origin() string {
	mode := "asynchronous"
	if c.synchronous {
		mode = "synchronous"
	}
	return mode + " Patroni cluster of " + c.bindir
}

// URL is the DSN of the superuser's database at an address, which may be a proxy's.
func (c *Cluster) URL(addr string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(superuser, c.password), Host: addr, Path: "/postgres",
		RawQuery: "sslmode=disable&connect_timeout=5",
	}
	return u.String()
}

func freeAddress() (string, error) {
	port, err := pgserver.FreePort()
	return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), err
}

// ask runs a query for one value on a node, on a connection of its own.
func ask[T any](ctx context.Context, n *Node, sql string, args ...any) (value T, err error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	conn, err := pgx.Connect(ctx, n.cluster.URL(n.addr))
	if err != nil {
		return value, fmt.Errorf("patroni: %s: %w", n.name, err)
	}
	defer conn.Close(ctx)
	if err = conn.QueryRow(ctx, sql, args...).Scan(&value); err != nil {
		err = fmt.Errorf("patroni: %s: %w", n.name, err)
	}
	return value, err
}
