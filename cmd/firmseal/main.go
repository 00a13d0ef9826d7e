// Command firmseal signs firmware, manages what devices trust and ships
// releases.
//
// Each subcommand is one file here, over the public API: with --server it talks
// to a server, without one it opens the workspace (.firmseal, found upward from
// the working directory) and calls the same handlers in this process.
//
// Data goes to standard output, progress and notices to standard error. Every
// command takes -o json, whose fields are a contract; text is for people and
// may change. Exit codes are those of `firmseal help exit-codes`.
package main

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"slices"
	"sync"
	"syscall"

	"github.com/alecthomas/kong"

	"github.com/firmseal/firmseal/internal/keys"
	"github.com/firmseal/firmseal/internal/problem"
)

func main() {
	os.Exit(Main(os.Args[1:], os.Stdin, os.Stdout, os.Stderr, hooks{}))
}

// hooks are what tests add to a server of this process; see server.Options.
type hooks struct {
	step   func(label string)
	record func(context.Context, keys.Use) error
}

// globals are the flags of every command.
type globals struct {
	Output    string `short:"o" name:"output" enum:"text,json" default:"text" help:"Output format: ${enum}."`
	Quiet     bool   `short:"q" help:"Print nothing; the exit code tells."`
	Server    string `help:"Server to talk to, as https://seal.example.com; without one, the workspace is opened in this process." env:"FIRMSEAL_SERVER" placeholder:"URL"`
	TokenFile string `help:"File that holds the API token (else FIRMSEAL_TOKEN)." env:"FIRMSEAL_TOKEN_FILE" placeholder:"FILE"`
	Workspace string `help:"Workspace directory; default: .firmseal here or above." env:"FIRMSEAL_WORKSPACE" placeholder:"DIR"`
	Identity  string `help:"age identity file that opens soft keys, instead of the workspace's." env:"FIRMSEAL_IDENTITY" placeholder:"FILE"`
	PassFD    int    `name:"passphrase-fd" help:"File descriptor to read the soft keys' passphrase from." default:"-1" placeholder:"N"`
	NoProg    bool   `name:"no-progress" help:"Show no progress." env:"CI"`
}

type cli struct {
	globals

	Quickstart quickstartCmd `cmd:"" help:"Sign, seal, log and verify a demo image here, step by step."`
	Init       initCmd       `cmd:"" help:"Make a workspace: log, log key and seal keys."`
	Serve      serveCmd      `cmd:"" help:"Serve the workspace over HTTP."`
	Status     statusCmd     `cmd:"" help:"Health of the workspace, and what somebody should look at."`
	Key        keyCmd        `cmd:"" help:"Create, list, show and retire keys; export what a device must hold."`
	Sign       signCmd       `cmd:"" help:"Sign an image under the policy, and fetch it with its seal and proof."`
	Verify     verifyCmd     `cmd:"" help:"Verify a sealed release offline, or an image as its bootloader would."`
	Inspect    inspectCmd    `cmd:"" help:"Show what an image, seal, proof or trust root says."`
	Request    requestCmd    `cmd:"" help:"List and show signing requests; resume or cancel an unknown one."`
	Release    releaseCmd    `cmd:"" help:"List, show and fetch releases."`
	Log        logCmd        `cmd:"" help:"List, prove and verify the transparency log."`
	Policy     policyCmd     `cmd:"" help:"Apply, show, lint and test policy documents."`
	Trust      trustCmd      `cmd:"" help:"Export the trust root that devices check seals with."`
	Token      tokenCmd      `cmd:"" help:"Create, list and revoke API tokens."`
	Help       helpCmd       `cmd:"" help:"Explain a command, a code or a format: help CODE, help codes, help exit-codes, help scopes, help format NAME."`
	Version    versionCmd    `cmd:"" help:"Print the version."`
}

// Main runs one command line and gives its exit code.
func Main(args []string, stdin io.Reader, stdout, stderr io.Writer, h hooks) int {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	// The first signal asks for an orderly end; a second one ends the process as
	// if nobody had caught it.
	context.AfterFunc(ctx, stop)
	var c cli
	out := &writer{w: stdout}
	a := &app{ctx: ctx, g: &c.globals, stdin: stdin, stdout: out, stderr: stderr, hooks: h}
	a.passphrase = sync.OnceValues(a.readPassphrase)
	exited := -1
	p, err := kong.New(&c, kong.Name("firmseal"),
		kong.Description("One binary that signs firmware under policy, logs it first, and verifies it before it leaves."),
		kong.Writers(out, stderr), kong.ConfigureHelp(kong.HelpOptions{Compact: true, NoExpandSubcommands: true}),
		kong.Exit(func(code int) { exited = code; panic(exitNow{}) }), kong.Bind(a))
	if err != nil {
		panic(err) // the grammar is wrong: a bug
	}
	kc, err := parse(p, args)
	if exited >= 0 {
		return exited // --help
	}
	if err != nil {
		// The flags may not have been read: find the format by hand.
		if wantsJSON(args) {
			c.Output = "json"
		}
		return a.finish(problem.New(problem.Usage, "%s", err).WithHint("%s --help", commandOf(p.Model.Node, args)))
	}
	if c.PassFD >= 0 {
		if _, err := a.passphrase(); err != nil {
			return a.finish(err)
		}
	}
	if n := kc.Selected(); n != nil {
		a.command = n.FullPath()
	}
	err = kc.Run(a)
	var cut *interrupted
	switch {
	case err == nil || ctx.Err() == nil:
	case errors.As(err, &cut):
		a.note("interrupted\nnext  %s", cut.next)
		return problem.ExitInterrupt
	case errors.Is(err, context.Canceled):
		a.note("interrupted")
		return problem.ExitInterrupt
	}
	if err == nil && out.err != nil {
		err = problem.New(problem.Unavailable, "the answer cannot be written to standard output").Seen("%v", out.err).Because(out.err)
	}
	return a.finish(err)
}

// writer remembers that standard output failed: a script that reads a cut
// answer must not see exit code 0.
type writer struct {
	w   io.Writer
	err error
}

func (w *writer) Write(b []byte) (int, error) {
	n, err := w.w.Write(b)
	if err != nil && w.err == nil {
		w.err = err
	}
	return n, err
}

type exitNow struct{}

// parse catches the exit that kong takes after --help.
func parse(p *kong.Kong, args []string) (kc *kong.Context, err error) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(exitNow); !ok {
				panic(r)
			}
		}
	}()
	return p.Parse(args)
}

func wantsJSON(args []string) bool {
	for i, a := range args {
		if a == "-ojson" || a == "--output=json" || a == "-o=json" {
			return true
		}
		if (a == "-o" || a == "--output") && i+1 < len(args) && args[i+1] == "json" {
			return true
		}
	}
	return false
}

// commandOf is the part of a wrong command line that was a command.
func commandOf(n *kong.Node, args []string) string {
	out := "firmseal"
	for _, a := range args {
		i := slices.IndexFunc(n.Children, func(c *kong.Node) bool { return c.Name == a })
		if i < 0 {
			if n.Parent != nil {
				break
			}
			continue // a flag's value before the command
		}
		n = n.Children[i]
		out += " " + a
	}
	return out
}

// version is the module's version, or the commit of a build from a checkout.
func version() string {
	bi, ok := debug.ReadBuildInfo()
	if !ok {
		return "unknown"
	}
	if v := bi.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	for _, s := range bi.Settings {
		if s.Key == "vcs.revision" && len(s.Value) >= 12 {
			return "devel-" + s.Value[:12]
		}
	}
	return "devel"
}
