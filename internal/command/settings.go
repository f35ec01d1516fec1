package command

import (
	"fmt"
	"net"
	"reflect"
	"strings"

	"github.com/spf13/cobra"

	"github.com/webhookspine/spine/internal/service"
)

// environ is the environment. A variable that is set but empty is there, and empty.
type environ map[string]string

func newEnviron(variables []string) environ {
	e := make(environ, len(variables))
	for _, variable := range variables {
		name, text, _ := strings.Cut(variable, "=")
		e[name] = text
	}
	return e
}

// lookup finds a variable, as os.LookupEnv does.
func (e environ) lookup(name string) (value string, found bool) {
	value, found = e[name]
	return value, found
}

// needs says which settings a subcommand has.
type needs struct {
	groups   []any             // pointers to groups of service.Settings, which are filled before RunE
	defaults map[string]string // by variable, if the subcommand has a default of its own
	required []string          // variables that must be set
}

// bind gives cmd a flag for each setting in its groups. Before RunE it lays the flags over the environment, and reads
// the texts of both by one parser into the groups.
func (e environ) bind(cmd *cobra.Command, n needs) {
	flags := cmd.Flags()
	flags.SortFlags = false
	values := make(map[string]*flagText)
	for _, group := range n.groups {
		for _, f := range service.Fields(group) {
			v := &flagText{
				text: f.Default, placeholder: f.Placeholder, also: f.Also, rejectsEmpty: f.RejectsEmpty,
			}
			if own, ok := n.defaults[f.Name]; ok {
				v.text = own
			}
			v.fallback = v.text
			values[f.Name] = v
			flag := flags.VarPF(v, f.Flag, "", fmt.Sprintf("%s [%s]", f.Help, f.Name))
			if f.Kind == reflect.Bool {
				flag.NoOptDefVal = "true"
			}
		}
	}
	cmd.PreRunE = func(*cobra.Command, []string) error {
		// From the weakest to the strongest: own defaults, environment, flags.
		texts := make(map[string]string)
		for name, v := range values {
			text, isSet := e[name]
			if text == "" && e[v.also] != "" {
				text, isSet = e[v.also], true
			}
			if v.given {
				text, isSet = v.text, true
			}
			if text == "" && !v.rejectsEmpty {
				text, isSet = n.defaults[name], true
				if port := e["PORT"]; name == "LISTEN" && port != "" {
					host, _, _ := net.SplitHostPort(v.fallback)
					text = net.JoinHostPort(host, port)
				}
			}
			if isSet {
				texts[name] = text
			}
		}
		for _, name := range n.required {
			if texts[name] == "" {
				return misuse("%s: must be set (or give %s)", name, service.FlagName(name))
			}
		}
		for _, group := range n.groups {
			if err := service.Read(group, texts); err != nil {
				return err
			}
		}
		return nil
	}
}

// flagText is a setting's flag: its text as given, to be read together with the environment.
type flagText struct {
	text, placeholder string
	fallback          string // what unset means
	given             bool
	also              string // another spelling of the variable
	rejectsEmpty      bool   // empty is another text, and not none
}

func (v *flagText) String() string { return v.text }
func (v *flagText) Type() string   { return v.placeholder }
func (v *flagText) Set(text string) error {
	v.text, v.given = text, true
	return nil
}
