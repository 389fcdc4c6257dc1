package main

import (
	"github.com/consensys/gnark-crypto/ecc/bn254/fr"
	nativemimc "github.com/consensys/gnark-crypto/ecc/bn254/fr/mimc"
	"github.com/consensys/gnark/frontend"
	"github.com/consensys/gnark/std/hash/mimc"
)

// Chain is the statement: "I know a seed from which so many rounds of the hash MiMC lead to End".
// Each round is about 330 constraints over the scalar field of BN254.
type Chain struct {
	Seed frontend.Variable
	End  frontend.Variable `gnark:",public"`

	rounds int
}

// Define states the circuit.
func (circuit *Chain) Define(api frontend.API) error {
	hash, err := mimc.NewMiMC(api)
	if err != nil {
		return err
	}
	value := circuit.Seed
	for range circuit.rounds {
		hash.Reset()
		hash.Write(value)
		value = hash.Sum()
	}
	api.AssertIsEqual(value, circuit.End)
	return nil
}

// endOf computes what the circuit states, outside of it.
func endOf(seed fr.Element, rounds int) (fr.Element, error) {
	value := seed
	hash := nativemimc.NewMiMC()
	for range rounds {
		hash.Reset()
		bytes := value.Bytes()
		if _, err := hash.Write(bytes[:]); err != nil {
			return value, err
		}
		value.SetBytes(hash.Sum(nil))
	}
	return value, nil
}
