from . import hdf5, files # patch what reads and writes files onto `JetStore`
